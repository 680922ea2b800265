"""bench/tables.py: the tables of other encoders, and a row for each."""

import pytest

from bench import tables
from bench.photographs import SAMPLE
from kernels import quality_to_tables


def test_a_scaled_table_is_libjpegs():
    base = tuple(quality_to_tables(50, 1).flatten().tolist())
    for quality in (50, 75, 90, 100):
        assert tables.scaled(base, quality) == quality_to_tables(quality, 1).flatten().tolist()


def test_every_table_has_a_row_of_figures(tmp_path, capsys):
    assert tables.main(["--data", str(SAMPLE), "--limit", "1"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == list(tables.all_tables())
    assert all(float(row[2]) > 20 for row in rows)  # PSNR of the plain decode
    assert {row[5] for row in rows if row[1] in {"MozJPEG 75", "libjpeg 75", "flat 16"}} == {"0"}
    with pytest.raises(SystemExit) as ended:
        tables.main(["--data", str(tmp_path / "none.tar")])
    assert ended.value.code == 2
    assert "none.tar" in capsys.readouterr().err
