"""The TensorRT backend without a GPU: every layer converts, and each plan is built once."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import BackendSpec, tensorrt
from fadepth_core.runtime.checkpoint import Checkpoint

TESTS = Path(__file__).resolve().parents[1]
GPUS = ("SM75", "SM80", "SM86", "SM89", "SM120")
#: Megabytes of half-precision weights. A smaller engine would lack some of them.
WEIGHTS = {"smalldepth": 4.7, "hqdecv2": 48.0}


@pytest.mark.parametrize(
    ("network", "precision", "camera", "batch", "gpus"),
    [
        ("smalldepth", "fp16", "720x1280", 4, GPUS),
        ("smalldepth", "fp32", "128x416", 1, (GPUS[0], GPUS[-1])),
        pytest.param("hqdecv2", "fp16", "128x416", 1, ["SM89"], marks=pytest.mark.slow),
    ],
)
def test_the_whole_graph_becomes_one_engine(network, precision, camera, batch, gpus):
    """Built by the real Torch-TensorRT and TensorRT-RTX, ahead of time for GPUs that are not in the machine."""
    script = str(TESTS / "core" / "tensorrt_without_gpu.py")
    command = [sys.executable, script, network, precision, camera, str(batch), *gpus]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["engines"]) == list(gpus)
    least = 1e6 * WEIGHTS[network] * (1 if precision == "fp16" else 2)
    assert all(size is not None and size > least for size in found["engines"].values()), found
    assert found["outputs"] == ["DataType.FLOAT", "DataType.FLOAT"], "depth in metres needs single precision"
    print(f"{network} {precision} {camera} batch {batch}: {found}")


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tensorrt, "plan_identity", lambda spec, batch: {"batch": str(batch), "gpu": "one"})
    return BackendSpec(Checkpoint(), Framing.plan((128, 416)), "fp16", logger=logging.getLogger("fadepth"))


def test_a_plan_is_built_once_and_the_log_says_that_it_takes_a_minute(spec, monkeypatch, caplog):
    caplog.set_level("INFO")
    built = []
    monkeypatch.setattr(tensorrt, "build_in_child", lambda spec, batch: built.append(batch) or b"plan%d" % batch)
    assert tensorrt.plan_for(spec, 1) == b"plan1"
    assert "building a TensorRT engine for 416x128, fp16; this takes a minute or so, once" in caplog.text
    assert tensorrt.plan_for(spec, 1) == b"plan1"
    assert tensorrt.plan_for(spec, 4) == b"plan4"
    assert built == [1, 4]
    # Another GPU needs another plan.
    monkeypatch.setattr(tensorrt, "plan_identity", lambda spec, batch: {"batch": str(batch), "gpu": "other"})
    tensorrt.plan_for(spec, 1)
    assert built == [1, 4, 1]


def test_a_plan_that_tensorrt_cannot_load_is_removed_from_the_cache(spec, monkeypatch):
    def refuse(plan):
        raise tensorrt.PlanError("TensorRT cannot load the engine")

    monkeypatch.setattr(tensorrt, "build_in_child", lambda spec, batch: b"plan")
    monkeypatch.setattr(tensorrt, "PlanRunner", refuse)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    file = tensorrt.plan_cache().path(tensorrt.plan_identity(spec, 1))
    tensorrt.plan_for(spec, 1)
    assert file.is_file()
    with pytest.raises(tensorrt.PlanError):
        tensorrt.create(spec)
    assert not file.exists()


def test_a_cancelled_build_is_killed(spec, monkeypatch):
    processes = []

    class Endless(subprocess.Popen):
        """A build that never ends, and is cancelled once it has begun."""

        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", "import time; time.sleep(1e6)"], **options)
            processes.append(self)
            spec.cancelled.set()

    monkeypatch.setattr(tensorrt.subprocess, "Popen", Endless)
    with pytest.raises(tensorrt.BuildError, match="build cancelled: its engine was released"):
        tensorrt.build_in_child(spec, 1)
    assert processes[0].returncode == -signal.SIGKILL


def test_a_cancelled_build_is_not_begun(spec):
    spec.cancelled.set()
    with pytest.raises(tensorrt.BuildError, match="build cancelled"):
        tensorrt.plan_for(spec, 1)


def test_a_build_ends_with_its_parent_process(spec):
    """The end of the parent process closes the pipe at the build's standard input."""
    program = (
        "import time; from fadepth_core.runtime.backends import tensorrt;"
        "tensorrt.torch_backend.cuda_graph = lambda _spec: time.sleep(1e6); tensorrt.main()"
    )
    request = {
        "checkpoint": str(spec.checkpoint.path),
        "framing": asdict(spec.framing),
        "precision": "fp16",
        "batch": 1,
    }
    with subprocess.Popen([sys.executable, "-c", program, json.dumps(request)], stdin=subprocess.PIPE) as build:
        build.stdin.close()
        assert build.wait() == 1


def test_a_build_that_fails_in_the_child_process_says_why(spec):
    """The real build fails on a machine without a GPU."""
    if tensorrt.unavailable_reason() is None:
        pytest.skip("the build does not fail on a machine with a GPU")
    with pytest.raises(tensorrt.BuildError, match=r"(?s)the build ended with status 1: .*(CUDA|NVIDIA)"):
        tensorrt.build_in_child(spec, 1)
