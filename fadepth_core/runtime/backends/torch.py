"""PyTorch: the reference, on a CPU or a CUDA device. What every other backend is compared with."""

from __future__ import annotations

import importlib.util

import numpy as np

from fadepth_core.runtime.backends import Job, default_threads

PRECISIONS = ("fp32",)


def missing() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "the package torch is not installed: pip install 'fadepth_ros[gpu]'"
    return None


def create(job: Job) -> TorchBackend:
    return TorchBackend(job)


class TorchBackend:
    """See `Backend`."""

    def __init__(self, job: Job):
        import torch

        from fadepth_core.runtime.graph import DepthGraph
        from fadepth_core.runtime.network import load_network

        self._torch = torch
        cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if cuda else "cpu")
        threads = job.threads or default_threads()
        self.device = torch.cuda.get_device_name() if cuda else f"CPU, {threads} threads"
        # On a GPU the resize is cheaper behind the upload; on a CPU OpenCV does it in a tenth of the time.
        self.takes_network_size = not cuda
        if not cuda:
            torch.set_num_threads(threads)
        network = load_network(job.checkpoint).to(self._device, memory_format=torch.channels_last)
        self._graph = DepthGraph(network, job.framing).to(self._device).eval()

    def infer(self, image, intrinsics, scale, limits):
        torch = self._torch
        with torch.inference_mode():
            depth, points = self._graph(
                torch.from_numpy(np.ascontiguousarray(image)).to(self._device),
                torch.as_tensor(np.eye(3) if intrinsics is None else intrinsics, dtype=torch.float32).to(self._device),
                torch.tensor([scale], dtype=torch.float32, device=self._device),
                torch.tensor(limits, dtype=torch.float32, device=self._device),
            )
            return depth.cpu().numpy(), None if intrinsics is None else points.cpu().numpy()
