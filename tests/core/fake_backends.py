"""Fake backends, for tests of the engine, its chain of backends, and their verification."""

from __future__ import annotations

import numpy as np
import torch

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, BackendType, FrameInput, FrameOutput
from fadepth_core.runtime.backends import openvino as openvino_backend
from fadepth_core.runtime.backends import torch as torch_backend


def fake_type(create=None, unavailable=None, precisions=("fp32",), compiled_per_size=False, **options):
    """A `BackendType` with constant answers."""
    return BackendType(lambda: unavailable, lambda: precisions, create, compiled_per_size, **options)


def gated_type(gate, create=None):
    """A backend compiled for one size, whose creation waits for the event `gate`."""

    def wait_and_create(spec):
        gate.wait()
        return (create or CompiledBackend)(spec)

    return fake_type(wait_and_create, compiled_per_size=True)


def replace_backends(monkeypatch, **types):
    """Let engines use these backend types, by name, instead of the real ones."""
    real = backends.backend_type
    monkeypatch.setattr(backends, "backend_type", lambda name: types.get(name) or real(name))


class ChangedOutput(Backend):
    """OpenVINO with its results passed through `change(output)`."""

    takes_network_size = True

    def __init__(self, spec, change):
        self.openvino, self._change = openvino_backend.create(spec), change
        self.device = self.openvino.device

    def infer(self, frame: FrameInput) -> FrameOutput:
        return self._change(self.openvino.infer(frame))


class CompiledBackend(Backend):
    """Replaces a backend that is compiled for one frame size and resizes frames in its graph."""

    device, takes_network_size = "compiler's device", False

    def __init__(self, spec):
        self._size, self._graph = spec.framing.camera_size, torch_backend.reference_graph(spec, spec.framing)

    def infer(self, frame: FrameInput) -> FrameOutput:
        image, intrinsics, scale, limits, with_confidence = frame
        assert image.shape[:2] == self._size
        k = torch.eye(3) if intrinsics is None else torch.from_numpy(np.asarray(intrinsics)).float()
        with torch.inference_mode():
            depth, points, *confidence = self._graph(
                torch.from_numpy(image), k, torch.tensor([scale]).float(), torch.tensor(limits).float()
            )
        return FrameOutput(
            depth.numpy(),
            None if intrinsics is None else points.numpy(),
            confidence[0].numpy() if with_confidence else None,
        )


def fails_to_start(error):
    """A `create` that raises `error`."""

    def create(spec):
        raise error

    return create


def fails_after(runs, error):
    """A `create` of a compiled backend that raises `error` after that many runs; its start takes two."""

    class Failing(CompiledBackend):
        def __init__(self, spec):
            super().__init__(spec)
            self._runs = 0

        def infer(self, frame):
            self._runs += 1
            if self._runs > runs:
                raise error
            return super().infer(frame)

    return Failing
