"""The published evaluation protocols for monocular depth, by name, and the evaluation loop.

    images -> NetworkPredictor or EnginePredictor -> inverse depth -> compare: resize, invert, scale, clip
           -> metrics per image -> mean

Predictions are resized to the ground truth, which is never resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch

from fadepth_core.common.color import normalise
from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import PIXELS, choose_network_size, focal_length
from fadepth_core.common.sample import LabelledImage
from fadepth_core.data.images import frames_and_intrinsics
from fadepth_core.evaluation.metrics import DepthMetrics, depth_metrics, mean_metrics
from fadepth_core.geometry import disparity_to_depth
from fadepth_core.models.depth_network import DeployedNetwork, DepthNetwork
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, EngineError, FrameRequest

#: RGB uint8 [H, W, 3] and its K [3, 3] -> inverse depth float32 [h, w] in 1/metres (up to one factor where the protocol
#: scales), at the size of the network's input.
Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Number of engines that `EnginePredictor` keeps, one per image size.
_MAX_ENGINES = 8

CROPS = ("garg",)
SCALINGS = ("median", "none")


@dataclass(frozen=True)
class Protocol:
    """Which pixels are evaluated, and how predictions are scaled to metres.

    Attributes:
        name: a key of `PROTOCOLS`, or any other name.
        crop: None for the whole image, or "garg" (`garg_crop`).
        min_depth, max_depth: range to which predictions are clipped, metres.
        max_truth: ground truth strictly between `min_depth` and this is evaluated, metres. None: `max_depth`.
        scaling: "median" multiplies every prediction by median(truth) / median(prediction), for networks without metric
            scale; "none" measures metric depth.
    """

    name: str
    crop: str | None = None
    min_depth: float = 1e-3
    max_depth: float = 80.0
    scaling: str = "median"
    max_truth: float | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop not in CROPS:
            raise ValueError(f"unknown crop '{self.crop}'; known crops: {', '.join(CROPS)}")
        if self.scaling not in SCALINGS:
            raise ValueError(f"unknown scaling '{self.scaling}'; known scalings: {', '.join(SCALINGS)}")
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"the range {self.min_depth} to {self.max_depth} m is empty or not positive")
        if self.farthest_truth <= self.min_depth:
            raise ValueError(f"no truth lies between {self.min_depth} and {self.farthest_truth} m")

    @property
    def farthest_truth(self) -> float:
        """Only ground truth nearer than this is evaluated, metres."""
        return self.max_depth if self.max_truth is None else self.max_truth


#: Larger than the largest depth of KITTI's 16-bit depth images (metres · 256), so that all known truth is evaluated.
_ALL_ANNOTATED = 256.0

#: `dataclasses.replace(PROTOCOLS[name], scaling="none")` measures metric depth instead.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # 697 test frames of the Eigen split, ground truth from one LiDAR sweep.
        Protocol("kitti_eigen", crop="garg"),
        # The 652 of them with ground truth accumulated over several sweeps (Uhrig et al. 2017), same crop and cap.
        Protocol("kitti_eigen_improved", crop="garg"),
        # The same frames as evaluated by monodepth2 (evaluate_depth.py, eval_split eigen_benchmark): no crop, all known
        # truth, and only predictions are clipped at 80 m. Its figures differ from those of kitti_eigen_improved.
        Protocol("kitti_eigen_improved_monodepth2", max_truth=_ALL_ANNOTATED),
        # The paper states no cap; its RMSE of 6 to 7 m fits 80 m. 200 m is the cap of most other work on DDAD.
        Protocol("ddad_80"),
        Protocol("ddad_200", max_depth=200.0),
        # Indoor and outdoor images of any camera with their depth: `FolderTest`.
        Protocol("folder"),
    )
}


def garg_crop(size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a (height, width) image in which KITTI's LiDAR and camera overlap (Garg et al. 2016)."""
    height, width = size
    return (
        slice(int(0.40810811 * height), int(0.99189189 * height)),
        slice(int(0.03594771 * width), int(0.96405229 * width)),
    )


@dataclass(frozen=True)
class Comparison:
    """One prediction and its ground truth.

    Attributes:
        image: the image and its ground-truth depth.
        depth: predicted depth in metres, float32 [H, W], scaled and clipped by the protocol.
        valid: bool [H, W], the evaluated pixels.
        ratio: median(truth) / median(prediction) of these pixels before scaling; 1 for correct metric scale.
        metrics: metrics of these pixels.
    """

    image: LabelledImage
    depth: np.ndarray
    valid: np.ndarray
    ratio: float
    metrics: DepthMetrics


def compare(predict: Predictor, image: LabelledImage, protocol: Protocol) -> Comparison:
    """Predict the depth of one image and measure it.

    Raises:
        DataError: no pixel has valid ground truth.
        ValueError: the prediction is not a map of positive, finite numbers.
    """
    valid = valid_pixels(image.depth, protocol)
    if not valid.any():
        raise DataError(
            f"{image.name}: no true depth between {protocol.min_depth} and {protocol.farthest_truth} m"
            f"{' inside the crop' if protocol.crop else ''}, so '{protocol.name}' cannot measure it"
        )
    inverse_depth = predict(image.image, image.intrinsics)
    if inverse_depth.ndim != 2 or not (np.isfinite(inverse_depth) & (inverse_depth > 0)).all():
        raise ValueError(
            f"{image.name}: the prediction must be a map [h, w] of positive, finite inverse depths, "
            f"got shape {inverse_depth.shape}, values from {inverse_depth.min()} to {inverse_depth.max()}"
        )
    height, width = image.depth.shape
    # Interpolate inverse depth, not depth: planes are linear in it, and depth edges are not blurred to the far side.
    depth = 1 / cv2.resize(inverse_depth.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    truth = image.depth[valid]
    ratio = float(np.median(truth) / np.median(depth[valid]))
    if protocol.scaling == "median":
        depth *= np.float32(ratio)
    depth = depth.clip(protocol.min_depth, protocol.max_depth)
    return Comparison(image, depth, valid, ratio, depth_metrics(depth[valid], truth))


def valid_pixels(truth: np.ndarray, protocol: Protocol) -> np.ndarray:
    """The pixels of a ground-truth depth [H, W] that the protocol evaluates, bool [H, W]."""
    known = (truth > protocol.min_depth) & (truth < protocol.farthest_truth)
    if protocol.crop is None:
        return known
    inside = np.zeros_like(known)
    inside[garg_crop(truth.shape)] = True
    return known & inside


@dataclass(frozen=True)
class ImageResult:
    """Result of one image: its name, metrics, and `Comparison.ratio`."""

    name: str
    metrics: DepthMetrics
    ratio: float


@dataclass(frozen=True)
class Evaluation:
    """Result of a protocol on a test set: one `ImageResult` per image, in the order of the set."""

    protocol: Protocol
    images: tuple[ImageResult, ...]

    @property
    def metrics(self) -> DepthMetrics:
        """The mean over the images."""
        return mean_metrics([image.metrics for image in self.images])

    @property
    def ratio_median(self) -> float:
        """Median over the images of median(truth) / median(prediction)."""
        return float(np.median([image.ratio for image in self.images]))

    @property
    def ratio_spread(self) -> float:
        """Standard deviation of these ratios / their median; 0 if one factor scales all predictions to metres."""
        return float(np.std([image.ratio for image in self.images]) / self.ratio_median)

    def by_group(self, groups: Sequence[str]) -> dict[str, Evaluation]:
        """Split by the group of each image (`FolderTest.groups`), in order of appearance."""
        parts: dict[str, list[ImageResult]] = {}
        for group, image in zip(groups, self.images, strict=True):
            parts.setdefault(group, []).append(image)
        return {group: Evaluation(self.protocol, tuple(images)) for group, images in parts.items()}

    def to_dict(self) -> dict:
        """All results as numbers, strings, lists and dicts for JSON."""
        return {
            "protocol": asdict(self.protocol),
            "metrics": asdict(self.metrics),
            "ratio_median": self.ratio_median,
            "ratio_spread": self.ratio_spread,
            "images": [asdict(image) for image in self.images],
        }


def evaluate(predict: Predictor, images: Iterable[LabelledImage], protocol: Protocol) -> Evaluation:
    """Measure `predict` on all images; only one image is in memory at a time.

    Raises:
        DataError: there are no images, or one has no valid ground truth.
        ValueError: a prediction is not a map of positive, finite numbers.
    """
    results = []
    for image in images:
        comparison = compare(predict, image, protocol)
        results.append(ImageResult(image.name, comparison.metrics, comparison.ratio))
    if not results:
        raise DataError(f"no images to evaluate '{protocol.name}' on")
    return Evaluation(protocol, tuple(results))


class NetworkPredictor:
    """A PyTorch depth network as a `Predictor`. Images are resized as in the depth node, and never cropped.

    Args:
        network: in evaluation mode, with `min_depth` and `max_depth` in metres; normalised image [B, 3, h, w] ->
            `DepthFeatures` (training form) or x in (0, 1) [B, 1, h, w] (deployment form).
        size: (height, width) of its input, multiples of 32; None keeps each camera's aspect ratio
            (`choose_network_size`), for test sets of several cameras.
        pixels: approximate number of input pixels if `size` is None.
        flip: average with the prediction for the mirrored image (the paper's ‡ rows); takes twice the time.
        focal: canonical focal length of the network (`data.focal`), pixels of `size`; None: predictions are not
            rescaled.
    """

    def __init__(
        self,
        network: DepthNetwork | DeployedNetwork,
        size: tuple[int, int] | None = None,
        pixels: int = PIXELS,
        flip: bool = False,
        focal: float | None = None,
    ):
        self.network = network
        self.size = size
        self.pixels = pixels
        self.flip = flip
        self.focal = focal

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """Shapes: RGB uint8 [H, W, 3], K [3, 3] -> inverse depth float32 [h, w] in 1/metres.

        Raises:
            RuntimeError: the network is in training mode.
            FramingError: invalid image or network size.
        """
        frames, matrix = self._input(image, intrinsics)
        if self.flip:
            frames = torch.cat([frames, frames.flip(-1)])
        output = self.network(frames)
        x = (output if isinstance(output, torch.Tensor) else output.disparities[0]).float()
        inverse_depth = 1 / disparity_to_depth(x, self.network.min_depth, self.network.max_depth)
        if self.flip:
            # Average inverse depth, not depth. It is affine in x, so this is the average of x too.
            inverse_depth = (inverse_depth[:1] + inverse_depth[1:].flip(-1)) / 2
        if self.focal is not None:
            inverse_depth *= self.focal / focal_length(matrix)
        return inverse_depth[0, 0].cpu().numpy()

    @torch.inference_mode()
    def expected_error(self, image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """Expected relative error of depth [h, w], from the confidence head of a deployed network. Flip has no effect.

        Raises: as `__call__`; ValueError: the network has no confidence head.
        """
        frames, _ = self._input(image, intrinsics)
        return error_of_confidence(self.network(frames, True)[1][0, 0].float().cpu().numpy())

    def _input(self, image: np.ndarray, intrinsics: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised image [1, 3, h, w] on the network's device, and its K."""
        if self.network.training:
            raise RuntimeError("the network is in training mode; call its eval() first")
        size = self.size or choose_network_size(image.shape[:2], self.pixels)
        frames, matrix = frames_and_intrinsics([image], intrinsics, size, crop_to_aspect=False)
        return normalise(frames.to(next(self.network.parameters()).device)), matrix


def error_of_confidence(confidence: np.ndarray) -> np.ndarray:
    """The expected relative error u that a confidence 1 / (1 + u) stands for."""
    return 1 / np.maximum(confidence, np.float32(1e-6)) - 1


class EnginePredictor:
    """The robot's `DepthEngine` as a `Predictor`: a checkpoint in the given backend and precision, without fallback.

    Args:
        checkpoint: opened.
        size, flip: as for `NetworkPredictor`; its other arguments are stored in the checkpoint.
        backend, precision: as for `DepthEngine.load`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        size: tuple[int, int] | None = None,
        flip: bool = False,
        backend: str = "auto",
        precision: str = "auto",
    ):
        self.checkpoint = checkpoint
        self.size = size
        self.flip = flip
        self.backend, self.precision = backend, precision
        # Test sets of several cameras alternate between a few sizes, so several engines are kept, the last used at the end.
        self._engines: dict[tuple[int, int], DepthEngine] = {}

    def __call__(self, image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """Shapes: as `NetworkPredictor`.

        Raises:
            EngineError: the backend cannot run here, or not in this precision.
            FramingError: invalid image or network size.
        """
        engine = self._engine_for(image.shape[:2])
        inverse_depth = 1 / engine.infer(FrameRequest(image, intrinsics, points=False)).depth
        if self.flip:
            mirrored_image = np.ascontiguousarray(image[:, ::-1])
            mirrored = engine.infer(FrameRequest(mirrored_image, intrinsics, points=False)).depth
            inverse_depth = (inverse_depth + 1 / mirrored[:, ::-1]) / 2
        self._check_backend(engine)
        return inverse_depth

    def expected_error(self, image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """Expected relative error of depth [h, w], from the confidence head. Flip has no effect.

        Raises: as `__call__`; ValueError: the checkpoint has no confidence head.
        """
        engine = self._engine_for(image.shape[:2])
        confidence = engine.infer(FrameRequest(image, intrinsics, points=False, confidence=True)).confidence
        self._check_backend(engine)
        if confidence is None:
            raise ValueError("this checkpoint has no confidence head")
        return error_of_confidence(confidence)

    def _check_backend(self, engine: DepthEngine) -> None:
        if self.backend not in ("auto", engine.backend_name) or self.precision not in ("auto", engine.precision):
            raise EngineError(
                f"requested {self.backend} {self.precision}, got {engine.description}"
                + "".join(f"\n  {failure}" for failure in engine.failures)
            )

    def _engine_for(self, size: tuple[int, int]) -> DepthEngine:
        """The engine for images of `size` (height, width)."""
        engine = self._engines.pop(size, None)
        if engine is None:
            if len(self._engines) == _MAX_ENGINES:
                del self._engines[next(iter(self._engines))]
            engine = DepthEngine.load(self.checkpoint, self.size, size, self.backend, self.precision)
        self._engines[size] = engine
        return engine
