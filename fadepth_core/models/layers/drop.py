"""Drop function (FA-Depth eq. 4) and its schedule (eq. 5).

A whole branch of one sample is zeroed at random while training and the survivors are rescaled, so evaluation needs no
correction. The rate grows during training: the trainer calls `set_drop_progress` once per iteration.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScheduledRate(nn.Module):
    """A probability that grows linearly with training progress, p(i) = P · min(i, N) / N (eq. 5).

    Args:
        maximum: P, in [0, 1).
        constant: keep p(i) = P from the first iteration (ablation row sch4 of Table V).

    Raises:
        ValueError: `maximum` is outside [0, 1); at 1 the rescaling by 1 / (1 - p) has no meaning.
    """

    def __init__(self, maximum: float, constant: bool = False):
        super().__init__()
        if not 0.0 <= maximum < 1.0:
            raise ValueError(f"a drop probability must lie in [0, 1), got {maximum}")
        self.maximum = float(maximum)
        self.constant = constant
        self.rate = self.maximum if constant else 0.0

    def set_progress(self, iteration: int, total: int) -> None:
        """Move to iteration i of N. Nothing is stored in the state dict: a resumed run calls this with its own i."""
        if total <= 0:
            raise ValueError(f"the total number of iterations must be positive, got {total}")
        if not self.constant:
            self.rate = self.maximum * min(max(iteration, 0), total) / total

    def extra_repr(self) -> str:
        return f"maximum={self.maximum}, rate={self.rate}, constant={self.constant}"


class DropBranch(ScheduledRate):
    """D_p(X) = m / (1 - p) ⊙ X with one Bernoulli(1 - p) draw per sample (eq. 4); identity when evaluating.

    Shapes: [B, ...] -> [B, ...].
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty(x.shape[0], *([1] * (x.dim() - 1)), device=x.device, dtype=x.dtype).bernoulli_(keep)
        return x * (mask / keep)


def set_drop_progress(model: nn.Module, iteration: int, total: int) -> None:
    """Set the drop rates of every scheduled module in `model` for iteration `iteration` of `total` (eq. 5)."""
    for module in model.modules():
        if isinstance(module, ScheduledRate):
            module.set_progress(iteration, total)
