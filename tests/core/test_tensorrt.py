"""The TensorRT backend, as far as a machine without a GPU allows: every layer converts, and plans are built once."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fadepth_core.runtime.backends import Job, tensorrt
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.framing import Framing

TESTS = Path(__file__).resolve().parents[1]
GPUS = ("SM75", "SM80", "SM86", "SM89", "SM120")
#: Megabytes of half-precision weights, of which there is no engine without.
WEIGHTS = {"smalldepth": 4.7, "hqdecv2": 48.0}


@pytest.mark.parametrize(
    ("network", "precision", "camera", "batch", "gpus"),
    [
        ("smalldepth", "fp16", "128x416", 1, GPUS),
        ("smalldepth", "fp16", "720x1280", 4, GPUS),
        ("smalldepth", "fp32", "128x416", 1, GPUS),
        ("hqdecv2", "fp16", "128x416", 1, ["SM89"]),  # a minute each
    ],
)
def test_the_whole_graph_becomes_one_engine(network, precision, camera, batch, gpus):
    """By Torch-TensorRT and TensorRT-RTX themselves, ahead of time, for graphics cards that are not there."""
    script = str(TESTS / "core" / "tensorrt_without_gpu.py")
    command = [sys.executable, script, network, precision, camera, str(batch), *gpus]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["engines"]) == list(gpus)
    least = 1e6 * WEIGHTS[network] * (1 if precision == "fp16" else 2)
    assert all(size is not None and size > least for size in found["engines"].values()), found
    assert found["outputs"] == ["DataType.FLOAT", "DataType.FLOAT"], "metres are not in half precision"
    print(f"{network} {precision} {camera} batch {batch}: {found}")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tensorrt, "plan_identity", lambda job, batch: {"batch": str(batch), "gpu": "one"})
    return Job(Checkpoint(), Framing.plan((128, 416)), "fp16", logger=logging.getLogger("fadepth"))


def test_a_plan_is_built_once_and_said_to_take_a_while(job, monkeypatch, caplog):
    caplog.set_level("INFO")
    built = []
    monkeypatch.setattr(tensorrt, "_built_elsewhere", lambda job, batch: built.append(batch) or b"plan%d" % batch)
    assert tensorrt.plan_for(job, 1) == b"plan1"
    assert "building a TensorRT engine for 416x128, fp16; this takes a minute or so, once" in caplog.text
    assert tensorrt.plan_for(job, 1) == b"plan1"
    assert tensorrt.plan_for(job, 4) == b"plan4"
    assert built == [1, 4]
    # Another card in the machine is another plan.
    monkeypatch.setattr(tensorrt, "plan_identity", lambda job, batch: {"batch": str(batch), "gpu": "other"})
    tensorrt.plan_for(job, 1)
    assert built == [1, 4, 1]


def test_a_build_that_fails_in_its_process_says_why(job):
    """On a machine without a GPU, the real one does."""
    if tensorrt.missing() is None:
        pytest.skip("there is a GPU here, on which it does not fail")
    with pytest.raises(tensorrt.BuildError, match=r"(?s)the build ended with status 1: .*(CUDA|NVIDIA)"):
        tensorrt._built_elsewhere(job, 1)
