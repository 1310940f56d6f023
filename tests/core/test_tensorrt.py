"""The TensorRT backend, as far as a machine without a GPU allows: every layer converts, and plans are built once."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import BackendSpec, tensorrt
from fadepth_core.runtime.checkpoint import Checkpoint

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
    return BackendSpec(Checkpoint(), Framing.plan((128, 416)), "fp16", logger=logging.getLogger("fadepth"))


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


def test_a_plan_that_tensorrt_does_not_take_is_forgotten(job, monkeypatch):
    def refuse(plan):
        raise tensorrt.PlanError("TensorRT cannot load the engine")

    monkeypatch.setattr(tensorrt, "_built_elsewhere", lambda job, batch: b"plan")
    monkeypatch.setattr(tensorrt, "PlanRunner", refuse)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    file = tensorrt._cache().path(tensorrt.plan_identity(job, 1))
    tensorrt.plan_for(job, 1)
    assert file.is_file()
    with pytest.raises(tensorrt.PlanError):
        tensorrt.create(job)
    assert not file.exists()


def test_a_build_that_nobody_waits_for_is_ended(job, monkeypatch):
    processes = []

    class Sleeping(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **options)
            processes.append(self)

    monkeypatch.setattr(tensorrt.subprocess, "Popen", Sleeping)
    threading.Timer(0.2, job.abandoned.set).start()
    with pytest.raises(tensorrt.BuildError, match="nobody waits"):
        tensorrt._built_elsewhere(job, 1)
    assert processes[0].returncode == -signal.SIGKILL


def test_a_build_ends_with_the_process_that_wanted_it(job):
    """Whose end closes the pipe that is the build's standard input."""
    program = (
        "import time; from fadepth_core.runtime.backends import tensorrt;"
        "tensorrt.eager.cuda_graph = lambda _job: time.sleep(600); tensorrt.main()"
    )
    order = {"checkpoint": str(job.checkpoint.path), "framing": asdict(job.framing), "precision": "fp16", "batch": 1}
    with subprocess.Popen([sys.executable, "-c", program, json.dumps(order)], stdin=subprocess.PIPE) as build:
        build.stdin.close()
        assert build.wait(60) == 1


def test_a_build_that_fails_in_its_process_says_why(job):
    """On a machine without a GPU, the real one does."""
    if tensorrt.unavailable_reason() is None:
        pytest.skip("there is a GPU here, on which it does not fail")
    with pytest.raises(tensorrt.BuildError, match=r"(?s)the build ended with status 1: .*(CUDA|NVIDIA)"):
        tensorrt._built_elsewhere(job, 1)
