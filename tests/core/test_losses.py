"""The losses at the true depth and motion and at wrong ones, on the analytic scene of `test_geometry`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_geometry import BOX, POSES, SIZE, WALL, Scene, all_taps_on, camera

from fadepth_core.geometry import (
    MAX_DEPTH,
    MIN_DEPTH,
    Reprojection,
    depth_to_disparity,
    motion_from_vector,
    relative_motion,
    reproject,
    sample,
    transform_points,
    unproject,
)
from fadepth_core.losses import BaseWeights, Motions, base_loss, depth_loss, speed_loss
from fadepth_core.losses.feature import feature_loss
from fadepth_core.losses.geometric import depth_difference, pair_weights, structure_loss, weighted_mean
from fadepth_core.losses.photometric import ImageStatistics, photometric_error, photometric_loss, ssim
from fadepth_core.losses.smoothness import smoothness_loss
from fadepth_core.losses.supervised import shape_loss
from fadepth_core.models.depth_network import DepthFeatures

RANGE = (MIN_DEPTH, MAX_DEPTH)
TERMS = ("photometric", "structure", "feature", "smoothness")


class Drive:
    """Three frames of a scene, and the base loss of a predicted depth and motion."""

    def __init__(self, scene: Scene):
        views = [scene.render(camera(), pose) for pose in POSES]
        self.frames = torch.stack([image for image, _, _ in views])[None]
        self.depth = torch.stack([depth for _, depth, _ in views])
        self.surface = torch.stack([surface for _, _, surface in views])
        # Features like those of a stride-2 encoder: 8 more colours of the same points, at every second pixel.
        points = [self._points(depth, pose)[:, ::2, ::2] for depth, pose in zip(self.depth, POSES, strict=True)]
        self.features = torch.stack([scene.colour(p, channels=8) - 0.5 for p in points])
        self.motions = Motions.from_poses(POSES[None])

    @staticmethod
    def _points(depth, pose):
        return transform_points(pose[None], unproject(depth[None], camera()[None]))[0]

    def loss(self, depth=None, motions=None, weights=BaseWeights()):  # noqa: B008 - immutable
        disparity = depth_to_disparity(self.depth if depth is None else depth)
        outputs = DepthFeatures((disparity,), (self.features,), ())
        return base_loss(self.frames, camera()[None], outputs, motions or self.motions, RANGE, weights)


@pytest.fixture(scope="module")
def wall():
    return Drive(Scene(box=None))


@pytest.fixture(scope="module")
def box():
    return Drive(Scene())


# ------------------------------------------------------------------------------------------- true and wrong predictions

#: Bounds on the photometric, structure and feature terms at the truth. None is exactly zero, because images, depths and
#: features of the other view are interpolated, with the bilinear error that `test_geometry` bounds. On the box, windows
#: and taps across silhouettes add to it.
AT_TRUTH = {"wall": (1.5e-4, 1e-6, 2e-4), "box": (4e-3, 3e-4, 2.5e-3)}


@pytest.mark.parametrize("name", AT_TRUTH)
def test_terms_are_small_at_the_truth(name, request):
    loss = request.getfixturevalue(name).loss()
    for term, bound in zip(TERMS, AT_TRUTH[name], strict=False):
        assert 0 <= getattr(loss, term).item() < bound, term


def wrong_depths(drive):
    ramp = torch.linspace(0.85, 1.2, SIZE[1], dtype=torch.float64)
    return {
        "5 % too near": 0.95 * drive.depth,
        "5 % too far": 1.05 * drive.depth,
        "a third too far": 1.33 * drive.depth,
        "tilted": ramp * drive.depth,
        "flat": torch.full_like(drive.depth, drive.depth.mean().item()),
    }


@pytest.mark.parametrize("name", AT_TRUTH)
def test_wrong_depth_increases_every_term(name, request):
    drive = request.getfixturevalue(name)
    truth = drive.loss()
    for description, depth in wrong_depths(drive).items():
        wrong = drive.loss(depth)
        # On the box, SSIM windows across silhouettes have as much error at the truth as 5 % of depth elsewhere.
        for term in ("structure",) if name == "box" and "5 %" in description else TERMS[:3]:
            assert getattr(wrong, term) > 1.5 * getattr(truth, term), f"{term}, depth {description}"


@pytest.mark.parametrize("name", AT_TRUTH)
def test_wrong_motion_increases_every_term(name, request):
    drive = request.getfixturevalue(name)
    truth = drive.loss()
    # Rotations in radians, then translations in metres.
    for axis, amount in ((0, 0.01), (1, 0.01), (2, 0.03), (4, 0.1), (5, 0.2)):
        error = torch.zeros(6, dtype=torch.float64)
        error[axis] = amount
        extra = motion_from_vector(error)
        wrong = drive.loss(motions=Motions(extra @ drive.motions.to_previous, extra @ drive.motions.to_next))
        for term in TERMS[:3]:
            assert getattr(wrong, term) > 1.5 * getattr(truth, term), f"{term}, axis {axis}"


def test_losses_grow_with_the_error(wall):
    errors = [wall.loss((1 + e) * wall.depth) for e in (0, 0.02, 0.05, 0.1, 0.2)]
    for term in TERMS[:3]:
        values = [getattr(loss, term).item() for loss in errors]
        assert values == sorted(values), term


def test_gradients_of_depth_and_motion(wall):
    """The derivative by a common factor on depth has the sign of the error; that by the motion is not zero."""
    for factor in (0.93, 1.07):
        scale = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
        turn = torch.zeros(1, 2, 6, dtype=torch.float64, requires_grad=True)
        wobble = Motions.from_vectors(turn)
        motions = Motions(wobble.to_previous @ wall.motions.to_previous, wobble.to_next @ wall.motions.to_next)
        wall.loss(scale * wall.depth, motions).total.backward()
        assert scale.grad * (factor - 1) > 0
        assert (turn.grad.abs() > 0).all()


def test_terms_without_weight_are_not_computed(wall):
    loss = wall.loss(weights=BaseWeights(photometric=0, structure=0, feature=0, smoothness=1))
    assert loss.views is None
    assert loss.total == loss.smoothness > 0
    loss = wall.loss(weights=BaseWeights(feature=0))
    assert loss.feature == 0 < loss.photometric


def test_total_is_the_weighted_sum(box):
    weights = BaseWeights(photometric=0.5, structure=2.0, feature=3.0, smoothness=0.7)
    loss = box.loss(1.1 * box.depth, weights=weights)
    assert loss.total.item() == pytest.approx(sum(getattr(weights, t) * getattr(loss, t).item() for t in TERMS))


def test_terms_are_averaged_over_the_scales(wall):
    """The same disparity at every scale gives the same terms as one scale; smoothness is a sum by definition."""
    disparity = depth_to_disparity(1.1 * wall.depth)
    one = wall.loss(1.1 * wall.depth)
    # The disparity of a plane is linear, so averaging and interpolating it changes the borders only.
    for scales, tolerance in (((disparity,) * 3, 1e-9), ((disparity, F.avg_pool2d(disparity, 2)), 0.02)):
        outputs = DepthFeatures(scales, (wall.features,), ())
        several = base_loss(wall.frames, camera()[None], outputs, wall.motions, RANGE, BaseWeights())
        for term in TERMS[:3]:
            assert getattr(several, term).item() == pytest.approx(getattr(one, term).item(), rel=tolerance), term


def test_views_show_each_frame_reconstructed(box):
    views = box.loss().views
    assert views.warped.shape == (4, 1, 3, *SIZE)
    torch.testing.assert_close(views.depth[0], box.depth)
    for pair, frame in enumerate((1, 1, 0, 2)):
        error = ((views.warped[pair, 0] - box.frames[0, frame]).abs() * views.visible[pair, 0]).mean()
        assert error < 2e-3


# ---------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(("a", "b"), [(1, 0), (2, 1)])
def test_masks_mark_exactly_the_occluded_pixels(a, b):
    """The occluded pixels are known by casting a ray of b through q. A seam of one pixel is excluded: its taps in b lie
    on both box and wall, so the interpolated flow is a mixture."""
    scene, k = Scene(), camera()
    (_, depth_a, _), (_, depth_b, surface_b) = scene.render(k, POSES[a]), scene.render(k, POSES[b])
    motion = relative_motion(POSES[a], POSES[b])[None]
    view = reproject(depth_a[None], motion, k[None])
    back = reproject(depth_b[None], relative_motion(POSES[b], POSES[a])[None], k[None])
    difference = depth_difference(view.depth, sample(depth_b[None], view.pixels))
    masks = pair_weights(view, sample(back.flow, view.pixels), difference)

    _, depth_at_q, _ = scene.cast(view.pixels[0], k, POSES[b])
    inside = view.valid[0, 0]
    hidden = inside & (depth_at_q < view.depth[0, 0] - 1e-9)
    seam = ~(all_taps_on(surface_b, view.pixels, BOX) | all_taps_on(surface_b, view.pixels, WALL))
    assert hidden.sum() > 50
    assert (inside & seam).sum() < 3 * sum(SIZE)
    certain = inside & ~seam
    assert (hidden & certain).sum() > 0.5 * hidden.sum()
    assert torch.equal(~masks.unoccluded[0, 0] & certain, hidden & certain)
    assert torch.equal(masks.visible[0, 0].bool() & ~seam, inside & ~hidden & ~seam)
    # Full weight for visible points, none for hidden ones.
    assert masks.weight[0, 0][certain & ~hidden].min() > 0.98
    assert masks.weight[0, 0][certain & hidden].max() == 0


def test_weights_by_hand():
    """docs/method.md, section 4.2, for four pixels: flow exact, 1 pixel off, 3 pixels off, outside the image."""
    flow = torch.tensor([8.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    returning = torch.tensor([[-8.0, -7.0], [-5.0, -8.0]]).view(1, 1, 2, 2)
    returning = torch.cat([returning, torch.zeros_like(returning)], dim=1)
    valid = torch.tensor([[True, True], [True, False]]).view(1, 1, 2, 2)
    difference = torch.tensor([[0.25, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    masks = pair_weights(Reprojection(flow, flow, flow[:, :1], valid), returning, difference)
    assert masks.unoccluded.flatten().tolist() == [True, True, False, True], (
        "bound² = 0.01·(64 + 49) + 0.5 for the second"
    )
    assert masks.visible.flatten().tolist() == [1, 1, 0, 0]
    one_off = torch.tensor(-1 / (8 + 7 + 1)).exp().item()
    assert masks.weight.flatten().tolist() == pytest.approx([0.75, one_off, 0, 0])


def test_moving_object_gets_less_weight(box):
    """The box moves, the wall does not: rigid flow with the true depths is wrong on the box only."""
    moved = Drive(replace(Scene(), box=((-1.0, -0.9, 3.5), (0.7, 0.8, 5.0))))
    depth = box.depth.clone()
    depth[0] = moved.depth[0]
    weight = box.loss(depth).views.weight[0, 0, 0]  # t -> t-1, where the box has come nearer
    on_box = box.surface[1, 0] == BOX
    assert weight[on_box].mean() < 0.8 * weight[~on_box].mean()


def test_pairs_that_do_not_overlap_are_skipped(wall):
    away = motion_from_vector(torch.tensor([[0, 2.0, 0, 0, 0, 0]], dtype=torch.float64))
    loss = wall.loss(motions=Motions(away, away))
    assert all(getattr(loss, term) == 0 for term in TERMS[:3])
    # With one overlapping neighbour, the loss is that neighbour's.
    half = wall.loss(motions=Motions(away, wall.motions.to_next))
    order = [2, 1, 2]
    outputs = DepthFeatures((depth_to_disparity(wall.depth[order]),), (wall.features[order],), ())
    twice = Motions(wall.motions.to_next, wall.motions.to_next)
    alone = base_loss(wall.frames[:, order], camera()[None], outputs, twice, RANGE, BaseWeights())
    for term in TERMS[:3]:
        torch.testing.assert_close(getattr(half, term), getattr(alone, term))


def test_weighted_mean_of_a_batch_is_the_mean_of_its_images():
    torch.manual_seed(0)
    values, weight = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    parts = torch.stack([weighted_mean(v[None], w[None]) for v, w in zip(values, weight, strict=True)])
    assert weighted_mean(values, weight).item() == pytest.approx(parts.mean().item(), rel=1e-5)
    weight[1] *= 0.01  # below 1 % of its pixels
    assert weighted_mean(values, weight).item() == pytest.approx(parts[[0, 2, 3]].mean().item(), rel=1e-5)
    assert weighted_mean(values, torch.zeros_like(weight)) == 0


# ---------------------------------------------------------------------------------------------------------- photometric


def test_ssim_equals_its_definition_window_by_window():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 3, 6, 7, dtype=torch.float64)
    padded = [F.pad(x, (1, 1, 1, 1), mode="reflect") for x in (a, b)]
    actual = ssim(ImageStatistics.of(a), ImageStatistics.of(b))
    for row, column, channel in ((0, 0, 0), (2, 3, 1), (5, 6, 2)):
        x, y = (p[0, channel, row : row + 3, column : column + 3].flatten() for p in padded)
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        expected = (2 * x.mean() * y.mean() + 1e-4) * (2 * covariance + 9e-4)
        expected /= (x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (x.var(correction=0) + y.var(correction=0) + 9e-4)
        assert actual[0, channel, row, column].item() == pytest.approx(expected.item(), rel=1e-9)


def test_photometric_error_is_zero_for_equal_images_symmetric_and_at_most_one():
    torch.manual_seed(0)
    a, b = (ImageStatistics.of(x) for x in torch.rand(2, 2, 3, 16, 16))
    black, white = (ImageStatistics.of(torch.full((1, 3, 8, 8), value)) for value in (0.0, 1.0))
    assert photometric_error(a, a).abs().max() < 1e-6
    torch.testing.assert_close(photometric_error(a, b), photometric_error(b, a))
    assert photometric_error(a, b).min() > 0
    assert photometric_error(a, b).max() <= 1
    # |I - Î| = 1 and SSIM = 0.
    assert photometric_error(black, white).mean() == pytest.approx(0.15 + 0.85 / 2, abs=1e-3)


def test_pixels_that_look_unmoved_do_not_count():
    error, unmoved = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.6)
    error[..., :4], unmoved[..., :4] = 0.9, 0.8  # unmoved is smaller
    everywhere = torch.ones(1, 1, 8, 8)
    assert photometric_loss(error, unmoved, everywhere, everywhere.bool()).item() == pytest.approx(0.5)
    assert photometric_loss(error, error, everywhere, everywhere.bool()).item() == pytest.approx(0.7), "ties count"


def test_border_of_the_overlap_does_not_count():
    """An SSIM window at the border contains the black outside the other frame."""
    image = torch.rand(1, 3, 16, 16) * 0.5 + 0.5
    valid = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    valid[..., 4:] = True
    error = photometric_error(ImageStatistics.of(image), ImageStatistics.of(image * valid))
    assert error[..., 4].max() > 0.1
    ones = torch.ones(1, 1, 16, 16)
    assert photometric_loss(error, ones, valid * ones, valid) < 1e-6


# ----------------------------------------------------------------------------------- structure, features and smoothness


def test_structure_loss_counts_visible_pixels_and_has_gradients_for_both_depths():
    moved = torch.full((1, 1, 4, 4), 2.0, requires_grad=True)
    sampled = torch.full((1, 1, 4, 4), 6.0, requires_grad=True)
    visible = torch.zeros(1, 1, 4, 4)
    visible[..., 0] = 1
    loss = structure_loss(depth_difference(moved, sampled), visible)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    for depth, sign in ((moved, -1), (sampled, 1)):
        assert (depth.grad[..., 0] * sign > 0).all()
        assert (depth.grad[..., 1:] == 0).all()


def test_feature_loss_compares_directions_not_lengths():
    torch.manual_seed(0)
    features = torch.randn(1, 5, 6, 8)
    flow, weight = torch.zeros(1, 2, 12, 16), torch.ones(1, 1, 12, 16)
    assert feature_loss(features, 3 * features, flow, weight).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(features, -features, flow, weight).item() == pytest.approx(2)
    shifted = torch.zeros_like(features)
    shifted[..., 1:] = features[..., :-1]
    flow[:, 0] = 2  # two pixels of the image are one of the features
    weight[..., 14:] = 0
    assert feature_loss(features, shifted, flow, weight).item() == pytest.approx(0, abs=1e-6)


def test_feature_loss_is_finite_for_zero_features():
    features = torch.zeros(1, 5, 6, 8, requires_grad=True)
    loss = feature_loss(features, torch.rand(1, 5, 6, 8), torch.zeros(1, 2, 12, 16), torch.ones(1, 1, 12, 16))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert features.grad.isfinite().all()


def test_feature_loss_refuses_maps_without_a_whole_stride():
    with pytest.raises(ValueError, match="features of 5x8 do not fit"):
        feature_loss(torch.rand(1, 5, 5, 8), torch.rand(1, 5, 5, 8), torch.rand(1, 2, 12, 16), torch.rand(1, 1, 12, 16))


def test_smoothness_is_zero_for_constants_ignores_scale_and_allows_image_edges():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    flat, step_at_edge, step_elsewhere = (torch.full((1, 1, 16, 16), 0.2) for _ in range(3))
    step_at_edge[..., 8:] = 0.4
    step_elsewhere[..., 8:, :] = 0.4
    assert smoothness_loss([flat, flat[..., ::2, ::2]], image) == 0
    at_edge, elsewhere = smoothness_loss([step_at_edge], image), smoothness_loss([step_elsewhere], image)
    assert at_edge.item() == pytest.approx(elsewhere.item() / torch.e, rel=1e-4), "an edge of full contrast"
    torch.testing.assert_close(smoothness_loss([0.5 * step_elsewhere], image), elsewhere)
    halved = F.avg_pool2d(step_elsewhere, 2)
    both = smoothness_loss([step_elsewhere, halved], image)
    assert both.item() == pytest.approx(
        elsewhere.item() + 0.5 * smoothness_loss([halved], F.avg_pool2d(image, 2)).item()
    )


# --------------------------------------------------------------------------------------------------------- measurements


def test_depth_loss_is_zero_at_the_truth_and_larger_when_too_far():
    torch.manual_seed(0)
    truth = 1 + 40 * torch.rand(2, 12, 16)
    disparity = depth_to_disparity(truth)[:, None]
    assert depth_loss([disparity], truth, *RANGE).item() == pytest.approx(0, abs=1e-5)
    for factor, cost in ((0.5, math.log(2)), (0.1, math.log(10)), (1.5, 0.5), (math.e, math.e - 1)):
        found = depth_loss([depth_to_disparity(factor * truth.clamp(max=30))[:, None]], truth.clamp(max=30), *RANGE)
        assert found.item() == pytest.approx(cost, rel=1e-3)
        predicted = depth_to_disparity(factor * truth.clamp(max=30))[:, None]
        found = depth_loss([predicted], truth.clamp(max=30), *RANGE, error="log")
        assert found.item() == pytest.approx(abs(math.log(factor)), rel=1e-3)
    # Beyond e times the truth the slope is constant.
    near = truth.clamp(max=20)
    assert depth_loss([depth_to_disparity(math.exp(1.5) * near)[:, None]], near, *RANGE).item() == pytest.approx(
        math.e - 1 + 0.5 * math.e, rel=1e-3
    )
    half = depth_to_disparity(truth / 2)[:, None]
    assert depth_loss([disparity, half], truth, *RANGE).item() == pytest.approx(0.5 * math.log(2), rel=1e-4)


def test_depth_loss_ignores_unknown_pixels_and_clamps_the_truth_to_the_depth_range():
    truth = torch.full((2, 4, 4), 10.0)
    truth[0, :, 2:] = 0  # unknown
    predicted = truth.clone()
    predicted[0, :, 2:], predicted[1] = 77.0, 20.0
    loss = depth_loss([depth_to_disparity(predicted)[:, None]], truth, *RANGE)
    assert loss.item() == pytest.approx(0.5 * 1.0, rel=1e-4), "all images count the same"
    truth[1] = 0
    assert depth_loss([depth_to_disparity(predicted)[:, None]], truth, *RANGE).item() == pytest.approx(0, abs=1e-5)
    assert depth_loss([torch.rand(2, 1, 4, 4)], torch.zeros(2, 4, 4), *RANGE) == 0
    sky = torch.full((1, 4, 4), 5000.0)
    assert depth_loss([torch.zeros(1, 1, 4, 4)], sky, *RANGE).item() == pytest.approx(0, abs=1e-5)


def test_depth_loss_interpolates_to_the_size_of_the_truth():
    truth = torch.full((1, 37, 53), 8.0)
    assert depth_loss([depth_to_disparity(torch.full((1, 1, 12, 16), 8.0))], truth, *RANGE).item() == pytest.approx(
        0, abs=1e-5
    )


def test_speed_loss_is_the_error_of_the_length_in_metres():
    speed, interval = torch.tensor([10.0, 4.0]), torch.tensor([0.1, 0.25])  # one metre each
    right = torch.tensor([[[0, 0, -1.0], [0.6, 0, 0.8]]] * 2)
    assert speed_loss(right, speed, interval).item() == pytest.approx(0, abs=1e-6), "in any direction"
    assert speed_loss(1.3 * right, speed, interval).item() == pytest.approx(0.3, rel=1e-5)
    assert speed_loss(0.5 * right, speed, interval).item() == pytest.approx(0.5, rel=1e-5)
    unknown = torch.tensor([10.0, torch.nan])
    one_wrong = right * torch.tensor([1.0, 9.0])[:, None, None]
    translations = one_wrong.requires_grad_()
    loss = speed_loss(translations, unknown, interval)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6), "unknown speeds do not count"
    assert translations.grad.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- shape loss


def disparity_of(depth):
    """The head's output [1, 1, H, W] for `depth` [H, W] in metres."""
    return depth_to_disparity(depth)[None, None]


def step_scene():
    """A near half and a far half, [H, W] metres."""
    depth = torch.full((24, 32), 4.0)
    depth[:, 16:] = 12.0
    return depth


def test_shape_loss_ignores_a_common_factor():
    depth = step_scene()
    for factor in (0.5, 1.0, 1.7):
        assert float(shape_loss(disparity_of(factor * depth), depth[None], 0.1, 100.0)) == pytest.approx(0, abs=1e-4)


def test_shape_loss_penalises_blurred_and_shifted_edges():
    depth = step_scene()
    blurred = torch.nn.functional.avg_pool2d(depth[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    shifted = torch.cat([depth[:, :1], depth[:, :-1]], dim=1)
    flat = torch.full_like(depth, 6.0)
    costs = [float(shape_loss(disparity_of(x), depth[None], 0.1, 100.0)) for x in (depth, shifted, blurred, flat)]
    assert costs[0] < 1e-4
    assert min(costs[1:]) > 0.1


def test_shape_loss_ignores_unknown_pixels_and_images_without_truth():
    """Predictions inside a hole do not count, nor do differences across its border."""
    depth = step_scene()
    holed = depth.clone()
    holed[5:9, 3:7] = 0
    wrong = depth.clone()
    wrong[5:9, 3:7] = 50.0
    assert float(shape_loss(disparity_of(wrong), holed[None], 0.1, 100.0)) == pytest.approx(0, abs=1e-4)
    both = torch.stack([depth, torch.zeros_like(depth)])
    blurred = torch.nn.functional.avg_pool2d(depth[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    alone = shape_loss(disparity_of(blurred), depth[None], 0.1, 100.0)
    beside = shape_loss(disparity_of(blurred).repeat(2, 1, 1, 1), both, 0.1, 100.0)
    torch.testing.assert_close(alone, beside)
    nothing = shape_loss(disparity_of(depth).requires_grad_(), torch.zeros(1, 24, 32), 0.1, 100.0)
    assert float(nothing) == 0
    nothing.backward()


def test_shape_loss_is_minimised_by_gradient_descent():
    depth = step_scene()
    logits = torch.zeros(1, 1, 24, 32, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.2)
    first = None
    for _ in range(150):
        loss = shape_loss(torch.sigmoid(logits), depth[None], 0.1, 100.0)
        first = first or float(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.15 * first
