"""Backends with wrong results do not serve."""

import numpy as np
import pytest

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import FrameOutput
from fadepth_core.runtime.engine import DepthEngine
from fake_backends import ChangedOutput, CompiledBackend, fake_type, replace_backends


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda depth, points, c: (depth * 1.01, points, c),
            "its depth differs from the reference by 1.0e-02 in the median",
        ),
        (lambda depth, points, c: (depth * np.nan, points, c), "its depth differs from the reference by nan"),
        (lambda depth, points, c: (depth[::-1], points, c), "its depth differs"),
        (lambda depth, points, c: (depth, points[:, ::-1], c), "its points do not lie on the rays"),
    ],
)
def test_results_that_differ_from_the_golden_output_are_rejected(monkeypatch, change, reason):
    def create(spec):
        return ChangedOutput(spec, lambda output: FrameOutput(*change(*output)))

    replace_backends(monkeypatch, openvino=fake_type(create))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "torch"
    assert reason in engine.failures[0]


def test_a_compiled_backend_is_compared_with_pytorch(monkeypatch):
    class Wrong(CompiledBackend):
        def infer(self, frame):
            output = super().infer(frame)
            return output._replace(depth=output.depth * np.float32(1.01))

    replace_backends(monkeypatch, tensorrt=fake_type(Wrong, compiled_per_size=True))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "openvino"
    assert "its depth differs from the reference by 1.0e-02 in the median" in engine.failures[0]


class WrongBatch(CompiledBackend):
    supports_batch = True

    def infer_batch(self, frames):
        return [FrameOutput(1.1 * depth, 1.1 * points, c) for depth, points, c in super().infer_batch(frames)]


def test_a_batch_is_compared_with_single_frames_and_a_wrong_one_is_deleted(monkeypatch):
    discarded = []
    replace_backends(monkeypatch, tensorrt=fake_type(WrongBatch, compiled_per_size=True, discard=discarded.append))
    engine = DepthEngine.load(camera_size=(64, 96), backend="tensorrt", batch=3)
    assert engine.failures[0].startswith("tensorrt: failed to start: its depth differs from the reference by 1.0e-01")
    assert [spec.batch for spec in discarded] == [3]
    engine = DepthEngine.load(camera_size=(64, 96), backend="torch", batch=3)
    assert (engine.backend_name, engine.batches, engine.failures) == ("torch", True, [])
