"""Drop function (FA-Depth eq. 4, stochastic depth) and the schedule of its rate (eq. 5).

In training, the output of a branch is set to zero for randomly chosen samples and rescaled for the others, so that
evaluation needs no correction. The drop rate grows during training: the trainer calls `set_drop_progress` once per
iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Mask = TypeVar("_Mask")


class ScheduledRate(nn.Module):
    """A probability that grows linearly with training progress, p(i) = P · min(i, N) / N (eq. 5).

    Args:
        maximum: P, in [0, 1).
        constant: keep p(i) = P from the first iteration (ablation row sch4 of Table V).

    Raises:
        ValueError: `maximum` is outside [0, 1); at 1 the factor 1 / (1 - p) is infinite.
    """

    def __init__(self, maximum: float, constant: bool = False):
        super().__init__()
        if not 0.0 <= maximum < 1.0:
            raise ValueError(f"a drop probability must lie in [0, 1), got {maximum}")
        self.maximum = float(maximum)
        self.constant = constant
        self.rate = self.maximum if constant else 0.0
        self._shared: dict[Hashable, Any] | None = None

    def set_progress(self, iteration: int, total: int) -> None:
        """Set the rate of iteration `iteration` of `total`.

        The rate is not part of the state dict, so a resumed run must call this again.

        Raises:
            ValueError: `total` is not positive.
        """
        if total <= 0:
            raise ValueError(f"the total number of iterations must be positive, got {total}")
        if not self.constant:
            self.rate = self.maximum * min(max(iteration, 0), total) / total

    def draw_mask(self, key: Hashable, draw: Callable[[], _Mask]) -> _Mask:
        """A random mask from `draw()`. Inside `shared_masks`, the first mask drawn for `key` is returned again."""
        if self._shared is None:
            return draw()
        if key not in self._shared:
            self._shared[key] = draw()
        return self._shared[key]

    def extra_repr(self) -> str:
        return f"maximum={self.maximum}, rate={self.rate}, constant={self.constant}"


class DropBranch(ScheduledRate):
    """D_p(X) = m / (1 - p) ⊙ X, with m drawn from Bernoulli(1 - p) for each sample (eq. 4); identity in evaluation.

    Shapes: [B, ...] -> [B, ...].
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate

        def draw() -> Tensor:
            return torch.empty(x.shape[0], device=x.device, dtype=x.dtype).bernoulli_(keep) / keep

        return x * self.draw_mask(x.shape[0], draw).view(-1, *([1] * (x.dim() - 1)))


def set_drop_progress(model: nn.Module, iteration: int, total: int) -> None:
    """Set the drop rates of every scheduled module in `model` for iteration `iteration` of `total` (eq. 5)."""
    for module in _scheduled(model):
        module.set_progress(iteration, total)


@contextmanager
def shared_masks(model: nn.Module) -> Iterator[None]:
    """Context in which every drop function of `model` uses one mask in all forward passes of the same batch size.

    For passes whose outputs are compared, e.g. those of a batch and of its mirrored copy. With separate masks, the
    different masks change the outputs far more than mirroring does.
    """
    modules = list(_scheduled(model))
    for module in modules:
        module._shared = {}
    try:
        yield
    finally:
        for module in modules:
            module._shared = None


def _scheduled(model: nn.Module) -> Iterator[ScheduledRate]:
    """The modules of `model` whose rate follows the schedule, including the branch rates of ETMs."""
    return (module for module in model.modules() if isinstance(module, ScheduledRate))
