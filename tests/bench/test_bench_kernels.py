"""bench/kernels.py counts the bytes that operators really take and give, and judges by its goals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.operators.cases import (
    DTYPES,
    OPERATORS,
    Case,
    Inputs,
    all_cases,
    bytes_needed,
    in_torch,
    make_inputs,
    ours,
    run,
)
from bench.operators.check import disagreement
from bench.operators.table import Cost, Pair, Row, cpu_table, cuda_table
from kernels import Subsampling

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


def size_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@ALL
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_bytes_needed_are_those_of_what_goes_in_and_comes_out(operator, sampling, dtype):
    case = Case(operator, sampling, dtype, images=2, side=32)
    inputs = make_inputs(case, CPU)
    there = replace(case, operator=operator.removesuffix("+backward"))
    reads = [inputs.c.tables]
    reads += [] if there.operator == "decode" else [inputs.x]
    reads += [] if there.operator in ("encode", "roundtrip") else inputs.c.planes
    result = run(in_torch(), there, Inputs(inputs.x, inputs.c, None))
    expected = size_of(*reads, *result)
    if case.backward:
        (_, gradient) = run(in_torch(), case, inputs)
        expected += size_of(*reads, inputs.gradient, gradient)
    assert bytes_needed(case) == expected


def test_cases_begin_with_420_and_have_decode_once():
    cases = all_cases(OPERATORS, Subsampling, DTYPES, [16, 1], 10)
    assert len(set(cases)) == len(cases) == 2 * 5 * (2 * len(OPERATORS) - 1) + 5 * 4
    assert {case.sampling for case in cases[:30]} == {Subsampling.S420}
    assert {case.operator for case in cases if case.edges} == {"project_exact"}
    assert [case.images for case in cases[:2]] == [1, 16]


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_agrees_with_torch_and_a_wrong_one_does_not(operator):
    case, right = Case(operator, Subsampling.S420, "float32", 1), ours()
    assert disagreement(case, right, CPU) == ""
    wrong = replace(
        right,
        encode=lambda x, tables, sampling: right.encode(255 - x, tables, sampling),
        decode=lambda c: right.decode(c) + 1,
        roundtrip=lambda x, tables, sampling: right.roundtrip(2 * x, tables, sampling),
        project=lambda x, c: right.project(2 * x, c),
        project_exact=lambda x, c: (x.to(torch.uint8), torch.zeros(len(x), dtype=torch.int64)),
    )
    assert disagreement(case, wrong, CPU)


def test_goals_are_judged_from_16_megapixels_up():
    copy = 1e12
    encode = Case("encode", Subsampling.S444, "bfloat16", 16)
    fast, slow = (Row(encode, {"kernel": bytes_needed(encode) / copy / share}) for share in (0.81, 0.79))
    assert (fast.goal(copy), slow.goal(copy)) == (">= 80 % of copy: met", ">= 80 % of copy: missed")
    assert Row(replace(encode, images=1), {"kernel": 1.0}).goal(copy) == ""
    both = Row(Case("roundtrip+backward", Subsampling.S420, "float32", 16), {"kernel": 1.0, "kornia": 19.0})
    assert both.goal(copy) == ">= 20x kornia: missed"
    exact = Case("project_exact", Subsampling.S420, "float32", 128)
    assert Row(exact, {"kernel": exact.pixels / 2.1e9}).goal(copy) == ">= 2 GP/s: met"
    for change in ({"quality": 50}, {"side": 1009}):
        assert Row(replace(exact, **change), {"kernel": 1.0}).goal(copy) == ""


def test_tables_show_figures_and_the_reason_where_there_is_none():
    case = Case("roundtrip", Subsampling.S420, "float32", 16)
    rows = [Row(case, {"kernel": 1e-3, "torch_ops": 5e-3}, {"kornia": "out of memory"})]
    rows.append(Row(case, {}, {"kernel": "WRONG: all of it"}))
    lines = cuda_table(rows, 1e12).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| 1.0000 | 16.78 |" in lines[2] and "| 5.0x |  | out of memory |" in lines[2]
    assert "WRONG: all of it" in lines[3]
    pair = Pair("roundtrip+backward 4:2:0", "kornia", "1 x 1024x1024", 1 << 20, Cost(0.1, 0.1), Cost(0.4, 0.29))
    assert cpu_table([pair]).splitlines()[2].endswith("| 4.00x | 2.90x | >= 3x: missed |")


@pytest.mark.parametrize("start", [["-m", "bench.kernels"], ["bench/kernels.py"]])
def test_the_command_runs_without_a_gpu(tmp_path, start):
    figures = tmp_path / "figures.json"
    options = ["--device", "cpu", "--operator", "decode", "--sampling", "gray", "--seconds", "0.01"]
    command = [sys.executable, *start, *options, "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| decode gray |" in done.stdout
    assert json.loads(figures.read_text())["pairs"][0]["ratio"] > 0
