"""Training of the confidence head (`fadepth confidence`): the depth network is frozen, and the head learns to predict the
network's own errors on pictures with known depth.

The depth can be measured, rendered, or a teacher's. Only the head's few thousand parameters are trained, so a few hundred
small batches are enough.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fadepth_core.common.color import normalise
from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import choose_network_size
from fadepth_core.common.sample import Sample, collate
from fadepth_core.data.augment import Augmentation
from fadepth_core.data.focal import at_focal_length
from fadepth_core.data.images import read_rgb
from fadepth_core.data.pictures import PictureDataset, list_pictures, picture_folders
from fadepth_core.losses import error_likelihood
from fadepth_core.models import add_confidence
from fadepth_core.models.depth_network import DeployedNetwork
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.network import load_network

LEARNING_RATE = 5e-3
_WARM_UP = 30
#: Threads that read and augment pictures. The network computes in one thread.
_LOADERS = 1
_LARGEST_GRADIENT = 1.0
_LEAST_START = 0.01
#: Changes of the pictures, so that the network makes other errors on those it was trained on.
_AUGMENTATION = Augmentation(scale=1.4, stretch=1.06, roll=2.0, pitch=2.0, jitter=0.8, camera=0.3)


@dataclass(frozen=True)
class ConfidenceOptions:
    """Attributes:
    iterations: number of batches.
    minutes: training ends after this time, even if fewer batches are done.
    batch_size: pictures of a batch.
    scaled: measure errors after scaling each picture's depth by one factor, for networks without metric scale.
    seed: of the order of the pictures and their augmentation.
    """

    iterations: int = 400
    minutes: float = 10.0
    batch_size: int = 6
    scaled: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ConfidenceStep:
    """Progress after a batch. `error`: mean relative error of its depth; `expected`: mean of what the head predicted."""

    iteration: int
    loss: float
    error: float
    expected: float


class LabelledFolders:
    """Batches of pictures with depth. The pictures of a batch come from one folder, so that they have one size.

    Args:
        roots: folders as for `data.pictures`; pictures without depth are not used.
        pixels: approximate number of pixels of the network's input; each folder keeps the aspect ratio of its first
            picture.
        focal_length: canonical focal length of the network, see `data.focal`; None: depth is used as it is.

    Raises:
        DataError: a folder cannot be used, or no picture of it has depth.
    """

    def __init__(self, roots: Sequence[Path], pixels: int, focal_length: float | None):
        self._focal_length = focal_length
        self._folders: list[tuple[PictureDataset, list[int], int]] = []  # with the pictures that have depth, and width
        for root in roots:
            before = len(self._folders)
            for folder in picture_folders(root):
                pictures = list_pictures(folder)
                labelled = [index for index, picture in enumerate(pictures) if picture.depth is not None]
                if labelled:
                    size = choose_network_size(read_rgb(pictures[labelled[0]].rgb).shape[:2], pixels)
                    self._folders.append((PictureDataset(folder, size), labelled, size[1]))
            if len(self._folders) == before:
                raise DataError(
                    f"{root}: no picture in it has depth; label them with 'fadepth label' or 'fadepth extract'"
                )

    def __len__(self) -> int:
        """Number of pictures with depth."""
        return sum(len(labelled) for _, labelled, _ in self._folders)

    def batch(self, count: int, seed: int) -> Sample:
        """A batch of `count` augmented pictures; `seed` decides everything random about it."""
        generator = random.Random(seed)
        # By the root of their numbers: a large folder must not hide the small ones, which are often the measured ones.
        weights = [math.sqrt(len(labelled)) for _, labelled, _ in self._folders]
        dataset, labelled, width = generator.choices(self._folders, weights)[0]
        samples = []
        for _ in range(count):
            noise = torch.Generator().manual_seed(generator.randrange(2**62))
            sample = _AUGMENTATION(dataset[generator.choice(labelled)], noise)
            if self._focal_length is not None:  # after the augmentation, because it changes the focal length
                sample = at_focal_length(sample, self._focal_length, width)
            samples.append(sample)
        return collate(samples)


def train_confidence(
    checkpoint: Checkpoint,
    roots: Sequence[Path],
    options: ConfidenceOptions = ConfidenceOptions(),
    on_step: Callable[[ConfidenceStep], None] | None = None,
) -> tuple[DeployedNetwork, int]:
    """Train a new confidence head for a checkpoint's network, whose depth stays the same.

    Args:
        checkpoint: of any network, in either form.
        roots: folders of pictures with depth, see `LabelledFolders`.
        on_step: called after each batch.

    Returns:
        the network in deployed form on the CPU, with the head; the number of batches.

    Raises:
        DataError, CheckpointError: the pictures or the checkpoint cannot be used.
    """
    description = checkpoint.description
    height, width = description.network_size
    data = LabelledFolders(roots, height * width, description.focal_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(options.seed)
    network = load_network(checkpoint).to(device)
    head = add_confidence(network).to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    batches = _prefetched(lambda number: data.batch(options.batch_size, options.seed * 1_000_003 + number))
    start, iteration, share = time.monotonic(), 0, 0.0
    while share < 1:
        warm = min(1.0, (iteration + 1) / _WARM_UP)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * share))
        batch = next(batches).to(device)
        assert batch.depth is not None  # see `LabelledFolders`
        with torch.no_grad():
            disparity, decoder = network.maps(normalise(batch.frames[:, 0]))
        against = (disparity, batch.depth, network.min_depth, network.max_depth, options.scaled)
        if iteration == 0:
            # From another start the first gradients are so large that the head's ReLUs may end at 0 everywhere.
            head.set_start(max(float(error_likelihood(torch.zeros_like(disparity), *against)[1]), _LEAST_START))
        s = head.log_uncertainty(decoder)
        loss, error = error_likelihood(s, *against)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        iteration += 1
        share = max(iteration / options.iterations, (time.monotonic() - start) / (60 * options.minutes))
        if on_step is not None:
            on_step(ConfidenceStep(iteration, float(loss.detach()), float(error), _mean_error(s)))
    return network.cpu().requires_grad_(False), iteration


def _prefetched(load: Callable[[int], Sample]) -> Iterator[Sample]:
    """The batches of the numbers 0, 1, ..., loaded by threads while the network computes."""
    with ThreadPoolExecutor(_LOADERS) as threads:
        pending = deque(threads.submit(load, number) for number in range(2 * _LOADERS))
        try:
            for number in itertools.count(len(pending)):
                batch = pending.popleft().result()
                pending.append(threads.submit(load, number))
                yield batch
        finally:
            for future in pending:
                future.cancel()


def _mean_error(log_uncertainty: Tensor) -> float:
    return float(log_uncertainty.detach().exp().mean())
