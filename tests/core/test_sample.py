"""Batches: page-locked memory for the copy to a GPU."""

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from fadepth_core.data import Sample, collate


def test_loader_pins_every_tensor_of_a_batch(monkeypatch):
    """torch's `pin_memory` is called by `DataLoader(pin_memory=True)` on each batch. `Tensor.pin_memory` is replaced,
    because it needs CUDA."""
    pinned = []

    def record(tensor, *_):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", record)
    sample = Sample(
        torch.rand(3, 3, 8, 8), torch.eye(3), torch.tensor(0.1), "drive:1", depth=torch.ones(4, 4),
        teacher={"disparity": torch.rand(1, 8, 8)},
    )  # fmt: skip
    batch = collate([sample, sample])
    result = pin_memory(batch)
    assert isinstance(result, Sample)
    tensors = [batch.frames, batch.intrinsics, batch.interval, batch.depth, batch.teacher["disparity"]]
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in pinned}
    assert result.frames is not batch.frames
    assert result.teacher["disparity"] is not batch.teacher["disparity"]
    assert (result.name, result.poses) == (["drive:1", "drive:1"], None)
