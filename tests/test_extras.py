"""What is not a dependency: without it everything else can be imported, and errors say what to install."""

import json
import subprocess
import sys

BLOCKED = ("nvidia.dali", "pylibjxl", "ray", "s3fs", "aiohttp", "matplotlib", "torch.utils.tensorboard")
CODE = f"""
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
import pipeline.distributed.cluster, pipeline.outputs.formats, pipeline.report.page, pipeline.verify, train.main
from pipeline.restore import main
from train.data.loader import Loader, LoaderConfig, LoaderError

said = {{}}
for option in (["--frontend", "dali"], ["--format", "jxl"], ["--engine", "ray"]):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = main(["--input-dir", sys.argv[1], "--output-dir", sys.argv[1] + "/out", *option])
    said[option[1]] = [code, error.getvalue()]
try:
    Loader(LoaderConfig(paths=["photos"]))
except LoaderError as error:
    said["loader"] = [2, str(error)]
print(json.dumps(said))
"""


def test_without_extras_the_rest_can_be_imported_and_errors_say_what_to_install(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for name, install in (
        ("dali", "pip install nvidia-dali-cuda130"),
        ("jxl", "pip install '.[jxl]'"),
        ("ray", "pip install '.[cluster]'"),
        ("loader", "pip install nvidia-dali-cuda130"),
    ):
        code, error = said[name]
        assert code == 2, name
        assert install in error, name
    assert not (tmp_path / "out").exists()
