"""How well an uncertainty ranks the errors of depth: sparsification (Ilg et al. 2018; for monocular depth Poggi et al. 2020).

The most uncertain pixels of an image are removed step by step, and the error of those that remain is measured. The best
possible order is that of the errors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage
from fadepth_core.evaluation.protocols import Predictor, Protocol, compare

#: Steps from all pixels to none.
_STEPS = 50

#: RGB uint8 [H, W, 3] and its K [3, 3] -> uncertainty float32 [h, w] in any unit; larger is less certain.
Uncertainty = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SparsificationFigures:
    """Areas between curves of the remaining error over the share of removed pixels, from 0 to 1.

    Attributes:
        ause_abs_rel, ause_rmse: AUSE, between the uncertainty's order and the best possible one; 0 is best.
        aurg_abs_rel, aurg_rmse: AURG, between a random order and the uncertainty's; above 0 it is better than random. RMSE
            in metres.
    """

    ause_abs_rel: float
    aurg_abs_rel: float
    ause_rmse: float
    aurg_rmse: float


@dataclass(frozen=True)
class Calibration:
    """Mean of |ln d - ln d*| as it is, and as the confidence head expects it. Depth is not scaled by the protocol."""

    actual: float
    expected: float


def sparsification_areas(cost: np.ndarray, uncertainty: np.ndarray | None, root: bool = False) -> tuple[float, float]:
    """AUSE and AURG of one image.

    Args:
        cost: [N], error of each pixel; the error of several pixels is its mean.
        uncertainty: [N]; None removes pixels in random order, whose expected curve is constant.
        root: the error of several pixels is the root of the mean, for squared errors.
    """
    cost = cost.astype(np.float64)
    best = _curve(np.sort(cost), root)
    constant = np.full_like(best, _curve(cost, root)[0])
    # Pixels of equal uncertainty come in random order, not in that of the image.
    own = constant
    if uncertainty is not None:
        shuffled = np.random.default_rng(0).permutation(len(cost))
        own = _curve(cost[shuffled][np.argsort(uncertainty[shuffled], kind="stable")], root)
    return _area(own - best), _area(constant - own)


def _curve(ordered: np.ndarray, root: bool) -> np.ndarray:
    """Error of the pixels that remain after each step [_STEPS]; `ordered`: costs, the most certain first."""
    kept = np.ceil(len(ordered) * (1 - np.arange(_STEPS) / _STEPS)).astype(int)
    means = np.cumsum(ordered)[kept - 1] / kept
    return np.sqrt(means) if root else means


def _area(difference: np.ndarray) -> float:
    """Integral over shares from 0 to 1. With no pixel left, all curves meet at 0."""
    closed = np.append(difference, 0.0)
    return float((closed[1:] + closed[:-1]).sum() / 2 / _STEPS)


def evaluate_uncertainty(
    predict: Predictor,
    uncertainties: Mapping[str, Uncertainty | None],
    images: Iterable[LabelledImage],
    protocol: Protocol,
) -> dict[str, SparsificationFigures]:
    """Mean figures over the images of each uncertainty, by name. None stands for a random order.

    Raises: as `compare`; DataError: there are no images.
    """
    found: dict[str, list[tuple]] = {name: [] for name in uncertainties}
    for image in images:
        comparison = compare(predict, image, protocol)
        depth, truth = comparison.depth[comparison.valid], image.depth[comparison.valid]
        relative, squared = np.abs(depth - truth) / truth, (depth - truth) ** 2
        for name, measure in uncertainties.items():
            order = None
            if measure is not None:
                order = resized(measure(image.image, image.intrinsics), image.depth.shape)[comparison.valid]
            found[name].append(
                (*sparsification_areas(relative, order), *sparsification_areas(squared, order, root=True))
            )
    if not all(found.values()):
        raise DataError(f"no images to evaluate '{protocol.name}' on")
    return {name: SparsificationFigures(*np.mean(rows, axis=0).tolist()) for name, rows in found.items()}


def calibration(
    predict: Predictor, expected_error: Uncertainty, images: Iterable[LabelledImage], protocol: Protocol
) -> Calibration:
    """The mean over the images of the actual and of the expected error. Raises: as `compare`."""
    rows = []
    for image in images:
        comparison = compare(predict, image, protocol)
        depth, truth = comparison.depth[comparison.valid], image.depth[comparison.valid]
        if protocol.scaling == "median":
            depth = depth / comparison.ratio
        expected = resized(expected_error(image.image, image.intrinsics), image.depth.shape)[comparison.valid]
        rows.append((np.abs(np.log(depth / truth)).mean(), expected.mean()))
    return Calibration(*np.mean(rows, axis=0).tolist())


def resized(uncertainty: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A map [h, w] at the size (height, width) of the truth."""
    return cv2.resize(uncertainty.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def flip_difference(predict: Predictor) -> Uncertainty:
    """The uncertainty |ln d - ln d'|, where d' is the depth of the mirrored image, mirrored back. It needs no training, and
    takes twice the time."""

    def measure(image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        mirrored = predict(np.ascontiguousarray(image[:, ::-1]), intrinsics)[:, ::-1]
        return np.abs(np.log(predict(image, intrinsics) / mirrored))

    return measure


def print_uncertainty_table(figures: Mapping[str, SparsificationFigures], calibrated: Calibration | None) -> None:
    """Print the figures by name, and how large the errors are that the confidence head expects."""
    width = max(map(len, figures))
    print("sparsification: AUSE, 0 is best; AURG, above 0 is better than a random order")
    print(" " * width + "".join(f"{name:>14}" for name in ("AUSE AbsRel", "AURG AbsRel", "AUSE RMSE", "AURG RMSE")))
    for name, row in figures.items():
        print(f"{name:<{width}}" + "".join(f"{value:14.4f}" for value in astuple(row)))
    if calibrated is not None:
        print(
            f"mean relative error (unscaled): {calibrated.actual:.3f}, expected by the head: {calibrated.expected:.3f}"
        )


def uncertainty_values(figures: Mapping[str, SparsificationFigures], calibrated: Calibration | None) -> dict:
    """The same for JSON."""
    values: dict = {"sparsification": {name: asdict(row) for name, row in figures.items()}}
    if calibrated is not None:
        values["relative_error"] = asdict(calibrated)
    return values
