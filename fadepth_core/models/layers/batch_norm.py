"""BatchNorm statistics for measurement and export, recomputed with drop off (docs/method.md, amendment to section 1.1).

During training, BatchNorm's running averages are collected while drop is on. Drop scales the values that it keeps by
1 / (1 - p). After a branch with p near 0.9, the averaged variance is therefore several times the variance at inference,
where nothing is dropped. For this reason the statistics are recomputed before a network is measured, used for pictures,
saved or exported.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.conv import running_statistics


@torch.no_grad()
def recompute_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace every BatchNorm's running mean and variance by those over all `batches`, with drop off.

    The new values are the exact statistics of all batches together, not a moving average ("precise" BatchNorm, Wu and
    Johnson 2021, "Rethinking 'Batch' in BatchNorm").

    Args:
        network: changed in place; left in evaluation mode.
        batches: at least one, each of normalised images [B, 3, H, W] on the network's device. During a pass every
            BatchNorm normalises by the statistics of the current batch.
    """
    collected: dict[nn.BatchNorm2d, list[tuple[int, Tensor, Tensor]]] = {
        module: [] for module in network.modules() if isinstance(module, nn.BatchNorm2d)
    }

    def collect(parts: list, _module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        parts.append((len(values), mean.double(), variance.double()))

    network.eval()
    for module in collected:
        module.train()  # normalise by the batch's statistics, not by the running ones
    hooks = [module.register_forward_pre_hook(partial(collect, parts)) for module, parts in collected.items()]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        network.eval()
    for module, parts in collected.items():
        if not parts:  # this BatchNorm was not called
            continue
        counts = torch.tensor([count for count, _, _ in parts], dtype=torch.float64)
        share = counts / counts.sum()
        means, variances = (torch.stack(values).cpu() for values in list(zip(*parts, strict=True))[1:])
        mean = share @ means
        # Variance within the batches plus variance between them.
        variance = share @ (variances + (means - mean).square())
        running_mean, running_variance = running_statistics(module)
        running_mean.copy_(mean)
        running_variance.copy_(variance)
