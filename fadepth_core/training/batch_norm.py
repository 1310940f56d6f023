"""BatchNorm statistics of the network that a run measures, saves and exports.

In training, the running averages are taken with drop on and over batches of a few images. They do not fit a network without
drop. So before a network is measured or saved, its statistics are recomputed over many training images with drop off
(`models.layers.batch_norm`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fadepth_core.common.color import normalise
from fadepth_core.common.memory import training_format
from fadepth_core.common.sample import SampleDataset
from fadepth_core.models import DepthNetwork
from fadepth_core.models.layers.batch_norm import recompute_batch_norm
from fadepth_core.training.config import TrainConfig
from fadepth_core.training.loader import Augment, statistics_images

#: Pixels per forward pass when statistics are recomputed: 32 images of 128x416.
PIXELS_PER_PASS = 32 * 128 * 416


class BatchNormStatistics:
    """Recomputes and freezes the BatchNorm statistics of a run's depth network.

    Args:
        dataset, augment: training data; `config.data.statistics_images` of its pictures are used.
    """

    def __init__(self, config: TrainConfig, dataset: SampleDataset, augment: Augment | None):
        self._config, self._dataset, self._augment = config, dataset, augment
        self._images: list[Tensor] | None = None
        self._copy: tuple[int, DepthNetwork] | None = None  # with the iteration it was made at
        #: Whether the statistics of the trained network are kept: from some step on (`freeze`), or those of the checkpoint that
        #: training starts from.
        self.frozen = False

    def batches(self, size: int, device: torch.device) -> Iterator[Tensor]:
        """The statistics images, normalised, in batches [B, 3, H, W] with B up to `size`."""
        if self._images is None:
            self._images = statistics_images(self._dataset, self._augment, self._config)
        for of_one_size in self._images:
            # Equal parts: BatchNorm cannot normalise a last batch of a single image.
            for images in of_one_size.tensor_split(math.ceil(len(of_one_size) / size)):
                yield normalise(images.to(device, memory_format=training_format(device)).float() / 255)

    def evaluation_copy(self, network: DepthNetwork, iteration: int) -> DepthNetwork:
        """A copy of `network` after `iteration` steps, in evaluation mode, with recomputed statistics.

        It is made once per iteration. `network` keeps its running averages.
        """
        if self._copy is None or self._copy[0] != iteration:
            copied = copy.deepcopy(network).eval()
            if not self.frozen:
                self._recompute(copied)
            self._copy = (iteration, copied)
        return self._copy[1]

    def freeze(self, network: nn.Module, iteration: int, iterations: int) -> None:
        """Called before step `iteration` of `iterations`: from `model.freeze_statistics` on, set BatchNorms to normalise as in
        deployment."""
        share = self._config.model.freeze_statistics
        if not self.frozen and (share is None or iteration < round(share * iterations)):
            return
        if not self.frozen:
            self._recompute(network)
            network.train()
            self.frozen = True
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _recompute(self, network: nn.Module) -> None:
        """Recompute the statistics of `network`, which is left in evaluation mode."""
        height, width = self._config.data.size
        size = max(8, PIXELS_PER_PASS // (height * width))
        recompute_batch_norm(network, self.batches(size, next(network.parameters()).device))
