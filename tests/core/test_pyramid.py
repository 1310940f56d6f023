"""Pyramid loss (docs/method.md, section 3): inputs of the levels, gradients, consistency terms, supervised losses."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_geometry import POSES, Scene, bilinear_bound, camera
from torch import nn

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD, ColorJitter
from fadepth_core.common.memory import training_format
from fadepth_core.common.sample import Sample, collate
from fadepth_core.geometry import (
    depth_to_disparity,
    flip_intrinsics,
    invert_motion,
    motion_from_vector,
    relative_motion,
    reproject,
    sample,
    scale_intrinsics,
)
from fadepth_core.losses import PAPER_LEVELS, BaseWeights, LevelWeights, Motions, PyramidLoss, predict_motions
from fadepth_core.losses.pyramid import ReferenceMap, consistency
from fadepth_core.models import SmallDepth
from fadepth_core.models.depth_network import DepthFeatures
from fadepth_core.models.layers.drop import DropBranch, set_drop_progress
from fadepth_core.models.posenet import build_pose_net
from fadepth_core.synthetic.dataset import SyntheticDataset

SIZE = (64, 96)
DOUBLE = (128, 192)
CR_ONLY = {"cr": LevelWeights(1.0)}


def scene_sample(scene=None, dtype=torch.float64, copies=1) -> Sample:
    """A batch of `copies` equal samples of the scene; frames have twice the size of level cr."""
    scene, intrinsics = scene or Scene(), camera(130.0, DOUBLE)
    views = [scene.render(intrinsics, pose, DOUBLE) for pose in POSES]
    one = Sample(
        frames=torch.stack([image for image, _, _ in views]),
        intrinsics=intrinsics,
        interval=torch.tensor(0.1),
        name="drive",
        speed=torch.tensor(5.0),
        poses=POSES,
        depth=views[1][1][0],
    )
    tensors = {name: value for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    return Sample(**{n: torch.stack([v] * copies).to(dtype) for n, v in tensors.items()}, name=["drive"] * copies)


class PointwiseDepth(nn.Module):
    """1×1 filters only, so that mirroring its input mirrors its output exactly."""

    min_depth, max_depth, feature_offset = 0.1, 100.0, 0

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, image):
        features = torch.tanh(self.features(image))
        return DepthFeatures((torch.sigmoid(self.head(features)),), (features[..., ::2, ::2],), (features,))


def networks(dtype=torch.float64):
    torch.manual_seed(3)
    return SmallDepth(residual_drop=0.0).to(dtype).eval(), build_pose_net("small").to(dtype).eval()


def gradients(loss: PyramidLoss, batch: Sample) -> list[torch.Tensor]:
    torch.manual_seed(5)  # the colours of level color
    parameters = [p for net in (loss.depth_net, loss.pose_net) if net is not None for p in net.parameters()]
    for parameter in parameters:
        parameter.grad = None
    loss(batch, torch.Tensor.backward)
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


# --------------------------------------------------------------------------------------------------------------- levels


def test_frames_of_every_level_match_its_intrinsics_depth_and_poses():
    """A level's frames equal a rendering with its intrinsics, and its true depth, intrinsics and poses warp one frame
    onto another, both to the bilinear error. The outermost pixels are excluded, because the reducing filter is cut off
    there."""
    scene = Scene(box=None, finest_wavelength=5.0)  # coarse texture, resolved at level lr
    torch.manual_seed(0)  # the colours of level color
    sizes = {}
    for name, level in PyramidLoss(PointwiseDepth(), None, SIZE).inputs(scene_sample(scene)):
        height, width = sizes[name] = tuple(level.frames.shape[-2:])
        intrinsics = flip_intrinsics(level.intrinsics, width)[0] if name == "flip" else level.intrinsics[0]
        image, depth, surface = scene.render(intrinsics, POSES[1], (height, width))
        if name == "flip":
            image, depth = image.flip(-1), depth.flip(-1)
        bound = bilinear_bound(level.frames[0, 1], surface)
        assert bound < 0.02, name
        if name != "color":
            assert (level.frames[0, 1] - image)[:, 1:-1, 1:-1].abs().max() <= bound, name

        motion = relative_motion(level.poses[:, 1], level.poses[:, 2])

        def largest_error(factor, level=level, depth=depth, motion=motion):
            view = reproject(factor * depth[None], motion, level.intrinsics)
            error = (sample(level.frames[:, 2], view.pixels) - level.frames[:, 1]) * view.valid
            return error[..., 2:-2, 2:-2].abs().max()

        assert largest_error(1.0) <= bound, name
        assert largest_error(1.3) > 3 * bound, name
    assert sizes == {"cr": SIZE, "lr": (32, 48), "hr": DOUBLE, "flip": SIZE, "color": SIZE}


def test_intrinsics_of_the_levels():
    batch = scene_sample()
    loss = PyramidLoss(PointwiseDepth(), None, SIZE)
    levels = dict(loss.inputs(batch))
    given = batch.intrinsics
    torch.testing.assert_close(levels["hr"].intrinsics, given)
    torch.testing.assert_close(levels["cr"].intrinsics, scale_intrinsics(given, 0.5, 0.5))
    torch.testing.assert_close(levels["lr"].intrinsics, scale_intrinsics(given, 0.25, 0.25))
    torch.testing.assert_close(levels["color"].intrinsics, levels["cr"].intrinsics)
    k, mirrored = levels["cr"].intrinsics[0], levels["flip"].intrinsics[0]
    assert mirrored[0, 2] == SIZE[1] - 1 - k[0, 2]
    assert torch.equal(levels["hr"].frames, batch.frames), "hr sees the original pixels"
    assert torch.equal(levels["flip"].frames, levels["cr"].frames.flip(-1))
    assert torch.equal(levels["flip"].depth, batch.depth.flip(-1))


def test_frames_of_the_size_of_level_cr_are_not_resized():
    levels = {name: weights for name, weights in PAPER_LEVELS.items() if name != "hr"}
    batch = scene_sample()
    loss = PyramidLoss(PointwiseDepth(), None, DOUBLE, levels)
    assert torch.equal(dict(loss.inputs(batch))["cr"].frames, batch.frames)


def test_color_jitter_draws_once_per_sample_and_keeps_grey_grey():
    torch.manual_seed(0)
    frames = torch.rand(4, 1, 3, 8, 8).expand(4, 3, 3, 8, 8)
    jittered = ColorJitter()(frames)
    assert torch.equal(jittered[:, 0], jittered[:, 1])
    assert torch.equal(jittered[:, 0], jittered[:, 2])
    assert (jittered - frames).abs().amax((1, 2, 3, 4)).min() > 0.02, "every sample changes"
    assert 0 <= jittered.min() <= jittered.max() <= 1
    same_input = ColorJitter()(frames[:1].expand(4, -1, -1, -1, -1))
    assert len(same_input.flatten(1).unique(dim=0)) == 4, "each sample has its own draw"

    torch.testing.assert_close(ColorJitter(0, 0, 0, 0)(frames), frames, atol=1e-6, rtol=0)
    grey = torch.rand(4, 3, 1, 8, 8).expand(4, 3, 3, 8, 8)
    torch.testing.assert_close(ColorJitter(0, 0, 0.5, 0.5)(grey), grey, atol=1e-5, rtol=0)
    brighter = ColorJitter(brightness=0.2, contrast=0, saturation=0, hue=0)(0.5 * frames)
    ratio = (brighter / (0.5 * frames)).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=0)
    contrasted = ColorJitter(brightness=0, contrast=0.2, saturation=0, hue=0)(0.3 + 0.4 * grey)
    torch.testing.assert_close(contrasted.mean((1, 2, 3, 4)), (0.3 + 0.4 * grey).mean((1, 2, 3, 4)))


# ------------------------------------------------------------------------------------------------------------ gradients


def test_immediate_backward_equals_joint_backward():
    """Without consistency terms the loss of a level depends on its own graph only (docs/method.md, section 3.3)."""
    torch.manual_seed(3)
    depth_net, pose_net = PointwiseDepth().double(), build_pose_net("small").double().eval()
    levels = {name: replace(weights, feature=0.0, disparity=0.0) for name, weights in PAPER_LEVELS.items()}
    batch = scene_sample()
    immediate = gradients(PyramidLoss(depth_net, pose_net, SIZE, levels), batch)
    joint = gradients(PyramidLoss(depth_net, pose_net, SIZE, levels, joint=True), batch)
    assert max(g.abs().max() for g in immediate) > 1e-3
    for a, b in zip(immediate, joint, strict=True):
        assert (a - b).abs().max() <= 1e-10


def test_consistency_has_a_gradient_at_level_cr_only_if_joint():
    """Immediate backward differentiates the consistency terms by the level's outputs, with cr as a constant."""
    torch.manual_seed(2)
    depth_net, batch = PointwiseDepth().double(), scene_sample()
    levels = {"cr": LevelWeights(0.0), "color": LevelWeights(0.0, 1.0, 1.0)}
    immediate = gradients(PyramidLoss(depth_net, None, SIZE, levels), batch)
    joint = gradients(PyramidLoss(depth_net, None, SIZE, levels, joint=True), batch)

    frozen = copy.deepcopy(depth_net)
    torch.manual_seed(5)
    inputs = dict(PyramidLoss(depth_net, None, SIZE, levels).inputs(batch))
    cr, color = (
        net(
            (inputs[name].frames.flatten(0, 1) - torch.tensor(PIXEL_MEAN).view(3, 1, 1))
            / torch.tensor(PIXEL_STD).view(3, 1, 1)
        )
        for net, name in ((frozen, "cr"), (depth_net, "color"))
    )
    depth_net.zero_grad()
    (
        (cr.decoder[0] - color.decoder[0]).abs().mean() + (cr.disparities[0] - color.disparities[0]).abs().mean()
    ).backward()
    for parameter, found, other in zip(depth_net.parameters(), immediate, joint, strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-7, rtol=1e-5)
        assert (found - other).abs().max() > 1e-5, "joint adds the gradient at cr"


def test_each_network_runs_once_per_level_and_each_graph_is_freed_before_the_next():
    depth_net, pose_net = networks(torch.float32)
    alive, batches = [], {"depth": [], "pose": []}

    def on_depth(_module, inputs, output):
        gc.collect()
        assert not any(reference() is not None for reference in alive), "the graph of the previous level is not freed"
        alive[:] = [weakref.ref(output.encoder[4]), weakref.ref(output.decoder[3])]
        batches["depth"].append(len(inputs[0]))

    depth_net.register_forward_hook(on_depth)
    pose_net.register_forward_hook(lambda _module, inputs, _output: batches["pose"].append(len(inputs[0])))
    report = PyramidLoss(depth_net, pose_net, SIZE)(scene_sample(dtype=torch.float32, copies=2), torch.Tensor.backward)
    assert batches == {"depth": [6] * 5, "pose": [4] * 5}
    assert list(report.levels) == ["cr", "lr", "hr", "flip", "color"]
    assert not report.total.requires_grad
    assert not any(v.requires_grad for level in report.levels.values() for v in vars(level).values() if v is not None)


def test_training_format_depends_on_the_device():
    """A CPU is slow with contiguous memory; on a GPU the gradients of dilated depthwise filters are slow with channels_last."""
    assert training_format(torch.device("cpu")) is torch.channels_last
    assert training_format(torch.device("cuda", 1)) is torch.contiguous_format


def test_network_inputs_are_channels_last():
    depth_net, pose_net = networks(torch.float32)
    seen = []
    for net in (depth_net, pose_net):
        net.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    PyramidLoss(depth_net, pose_net, SIZE)(scene_sample(dtype=torch.float32), lambda loss: None)
    assert len(seen) == 10
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_only_the_networks_run_under_autocast():
    """Networks in bfloat16, losses in the frames' precision."""
    depth_net, pose_net = networks(torch.float32)
    batch = scene_sample(dtype=torch.float32)
    full = PyramidLoss(depth_net, pose_net, SIZE)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="must not run under autocast"),
    ):
        full(batch, torch.Tensor.backward)

    def low_precision(net):
        forward = net.forward
        net.forward = torch.autocast("cpu", dtype=torch.bfloat16)(forward)

    torch.manual_seed(0)
    expected = full(batch, torch.Tensor.backward)
    for net in (depth_net, pose_net):
        low_precision(net)
    torch.manual_seed(0)
    found = full(batch, torch.Tensor.backward)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(expected.total.item(), rel=0.02)


def test_backward_is_called_once_per_level():
    """With the level's summand of eq. 20. If joint, once with the sum."""
    depth_net, pose_net = networks(torch.float32)
    batch, calls = scene_sample(dtype=torch.float32), []
    report = PyramidLoss(depth_net, pose_net, SIZE)(batch, lambda loss: calls.append(loss.item()))
    assert calls == pytest.approx([level.total.item() for level in report.levels.values()])
    assert report.total.item() == pytest.approx(sum(calls))
    calls.clear()
    report = PyramidLoss(depth_net, pose_net, SIZE, joint=True)(batch, lambda loss: calls.append(loss.item()))
    assert calls == [pytest.approx(report.total.item())]


def test_level_total_is_eq_20():
    depth_net, pose_net = networks(torch.float32)
    weights = BaseWeights(0.7, 0.3, 0.2, 0.01)
    batch = scene_sample(dtype=torch.float32)
    report = PyramidLoss(depth_net, pose_net, SIZE, weights=weights, depth_weight=0.4, speed_weight=0.6)(
        batch, torch.Tensor.backward
    )
    for name, level in report.levels.items():
        w = PAPER_LEVELS[name]
        own = 0.7 * level.photometric + 0.3 * level.structure + 0.2 * level.feature + 0.01 * level.smoothness
        expected = w.loss * (own + 0.4 * level.depth + 0.6 * level.speed)
        if name != "cr":
            expected = expected + w.feature * level.feature_consistency + w.disparity * level.disparity_consistency
        assert level.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert report.levels["cr"].feature_consistency is None


def test_training_reaches_every_parameter():
    torch.manual_seed(0)
    depth_net, pose_net = SmallDepth(residual_drop=0.0, etm="etm#").train(), build_pose_net("small").train()
    PyramidLoss(depth_net, pose_net, SIZE)(scene_sample(dtype=torch.float32, copies=2), torch.Tensor.backward)
    for net in (depth_net, pose_net):
        assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


# ---------------------------------------------------------------------------------------------------------- consistency


def test_consistency_is_zero_for_an_equivariant_network():
    """A pointwise network is equivariant to mirroring, not to colour changes."""
    depth_net = PointwiseDepth().double()
    levels = {
        "cr": LevelWeights(1.0),
        "flip": LevelWeights(1.0, 0.1, 0.5),
        "color": LevelWeights(1.0, 0.1, 0.1),
    }
    report = PyramidLoss(depth_net, None, SIZE, levels)(scene_sample(), torch.Tensor.backward)
    assert report.levels["flip"].feature_consistency < 1e-14
    assert report.levels["flip"].disparity_consistency < 1e-14
    assert report.levels["color"].feature_consistency > 1e-3
    assert report.levels["color"].disparity_consistency > 1e-4


@pytest.mark.parametrize("name", ["lr", "hr"])
def test_softmax_ignores_an_offset_and_l1_does_not(name):
    """The softmax over the image does not change if a constant is added to a level's map."""

    class Offset(PointwiseDepth):
        offset = 0.0

        def forward(self, image):
            outputs = super().forward(image)
            if image.shape[-2:] == SIZE:
                return outputs
            disparities = tuple(x + self.offset for x in outputs.disparities)
            return DepthFeatures(disparities, outputs.encoder, tuple(x + self.offset for x in outputs.decoder))

    values = {}
    for metric in ("softmax", "l1"):
        for offset in (0.0, 0.2):
            torch.manual_seed(1)
            net = Offset().double()
            net.offset = offset
            levels = {"cr": LevelWeights(1.0), name: LevelWeights(0.0, 1.0, 1.0, metric, metric)}
            level = PyramidLoss(net, None, SIZE, levels)(scene_sample(), torch.Tensor.backward).levels[name]
            values[metric, offset] = level.feature_consistency.item(), level.disparity_consistency.item()
    assert values["softmax", 0.2] == pytest.approx(values["softmax", 0.0], rel=1e-9)
    assert min(values["softmax", 0.0]) > 0, "not zero, because the level is interpolated"
    for plain, moved in zip(values["l1", 0.0], values["l1", 0.2], strict=True):
        assert plain < 0.1 < moved <= plain + 0.2 + 1e-9


# ----------------------------------------------------------------------------------------- poses and supervised losses


class TrueDepth(nn.Module):
    """Predicts the scene's depth times a factor for every image."""

    min_depth, max_depth, feature_offset = 0.1, 100.0, 0

    def __init__(self, factor=1.0):
        super().__init__()
        intrinsics = scale_intrinsics(camera(130.0, DOUBLE), 0.5, 0.5)
        views = [Scene(box=None).render(intrinsics, pose, SIZE) for pose in POSES]
        depth = factor * torch.stack([depth for _, depth, _ in views])
        self.disparity = nn.Parameter(depth_to_disparity(depth))

    def forward(self, image):
        features = image[..., ::2, ::2]
        disparity = self.disparity if len(image) == 3 else self.disparity[1:2]  # the middle frame alone
        return DepthFeatures((disparity,), (features,), (image,))


def test_known_poses_replace_the_pose_network():
    batch = scene_sample(Scene(box=None))
    right = PyramidLoss(TrueDepth(), None, SIZE, CR_ONLY)(batch, torch.Tensor.backward).levels["cr"]
    wrong_poses = batch.poses.clone()
    wrong_poses[..., :3, 3] *= 1.3
    scaled = replace(batch, poses=wrong_poses)
    wrong = PyramidLoss(TrueDepth(), None, SIZE, CR_ONLY)(scaled, torch.Tensor.backward).levels["cr"]
    assert wrong.photometric > 5 * right.photometric
    # Known poses make depth metric: depths scaled as the translations fit again.
    fitting = PyramidLoss(TrueDepth(1.3), None, SIZE, CR_ONLY)(scaled, torch.Tensor.backward).levels["cr"]
    assert wrong.photometric > 5 * fitting.photometric


def test_predicted_motions_are_those_of_the_pairs_in_temporal_order():
    """A pose network that returns the true motion of each pair gives the motions of the poses."""
    into_middle, out_of_middle = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def true_motions(pairs):
        first, second = pairs[:, :3].mean((1, 2, 3)), pairs[:, 3:].mean((1, 2, 3))
        assert torch.equal(second, first + 1), "temporal order"
        return torch.stack([(into_middle, out_of_middle)[int(x % 10)][int(x // 10)] for x in first])

    frames = torch.tensor([[0.0, 1, 2], [10, 11, 12]], dtype=torch.float64)  # sample 0 and 1
    frames = frames[..., None, None, None].expand(2, 3, 3, 4, 4)
    middle = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    poses = torch.stack(
        [motion_from_vector(into_middle), middle, invert_motion(motion_from_vector(out_of_middle))], dim=1
    )
    found, expected = predict_motions(true_motions, frames), Motions.from_poses(poses)
    torch.testing.assert_close(found.to_previous, expected.to_previous)
    torch.testing.assert_close(found.to_next, expected.to_next)


def test_without_motion_only_the_middle_frame_is_used():
    torch.manual_seed(0)
    batch, seen = scene_sample(copies=2), []
    network = PointwiseDepth().double()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    levels = {"cr": LevelWeights(1.0), "lr": LevelWeights(0.5)}

    def result(photometric):
        loss = PyramidLoss(network, None, SIZE, levels, BaseWeights(photometric, 0, 0, 0), depth_weight=1.0)
        return gradients(loss, batch)

    middle_only, all_frames = result(0.0), result(1e-12)
    assert seen == [2, 2, 6, 6]
    assert middle_only[0].abs().max() > 1e-4
    for found, expected in zip(middle_only, all_frames, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_supervised_losses_of_depth_and_speed():
    batch = scene_sample(Scene(box=None))
    none = BaseWeights(0, 0, 0, 0)
    level = PyramidLoss(TrueDepth(1.2), None, SIZE, CR_ONLY, none, depth_weight=1.0)(
        batch, torch.Tensor.backward
    ).levels["cr"]
    assert level.depth.item() == pytest.approx(0.2, abs=0.002)
    assert level.total == level.depth
    assert level.speed is None

    class HalfMetre(nn.Module):
        """Predicts a translation of 0.5 m for every pair."""

        def __init__(self):
            super().__init__()
            self.vector = nn.Parameter(torch.tensor([0, 0, 0, 0.3, 0, 0.4], dtype=torch.float64))

        def forward(self, pairs):
            return self.vector.expand(len(pairs), 6)

    def speed_part(speed):
        changed = replace(batch, speed=torch.tensor([speed], dtype=torch.float64))
        loss = PyramidLoss(TrueDepth(), HalfMetre(), SIZE, CR_ONLY, none, speed_weight=2.0)
        return loss(changed, torch.Tensor.backward).levels["cr"]

    assert speed_part(5.0).speed.item() == pytest.approx(0, abs=1e-7)
    assert speed_part(7.0).speed.item() == pytest.approx(0.2, abs=1e-7)
    assert speed_part(7.0).total.item() == pytest.approx(0.4, abs=1e-7)


def test_missing_data_and_wrong_sizes_are_refused():
    net, pose_net, batch = PointwiseDepth().double(), build_pose_net("small").double(), scene_sample()
    backward = torch.Tensor.backward
    with pytest.raises(ValueError, match="without a pose network the samples must have camera poses"):
        PyramidLoss(net, None, SIZE, CR_ONLY)(replace(batch, poses=None), backward)
    with pytest.raises(ValueError, match="needs samples with true depth"):
        PyramidLoss(net, pose_net, SIZE, CR_ONLY, depth_weight=1.0)(replace(batch, depth=None), backward)
    with pytest.raises(ValueError, match="needs samples with the camera's speed"):
        PyramidLoss(net, pose_net, SIZE, CR_ONLY, speed_weight=1.0)(replace(batch, speed=None), backward)
    with pytest.raises(ValueError, match="need frames of 256x384 pixels, got 128x192"):
        PyramidLoss(net, pose_net, DOUBLE)(batch, backward)
    with pytest.raises(ValueError, match="need frames of 60x90 or 120x180 pixels, got 128x192"):
        PyramidLoss(net, pose_net, (60, 90), CR_ONLY)(batch, backward)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": {"lr": LevelWeights(1.0)}}, "needs level cr"),
        (
            {"levels": {**CR_ONLY, "xr": LevelWeights(1.0)}},
            "unknown pyramid levels: xr; known: cr, lr, hr, flip, color",
        ),
        ({"levels": {"cr": LevelWeights(1.0, feature=0.1)}}, "compared with itself"),
        ({"size": (63, 96)}, "must be even, got 63x96"),
        ({"speed_weight": 1.0}, "a speed loss needs a pose network"),
    ],
)
def test_contradicting_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidLoss(PointwiseDepth(), None, **{"size": SIZE, **options})


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"must be one of l1, softmax, softmax_sigmoid, .*, got 'kl'"):
        LevelWeights(1.0, 0.1, 0.1, "kl")


def test_default_weights_are_the_papers():
    """Table X's best row per level, as Table IX uses them: w_k, w^f_k, w^d_k."""
    table = {name: (w.loss, w.feature, w.disparity) for name, w in PAPER_LEVELS.items()}
    assert table == {
        "cr": (1.0, 0.0, 0.0),
        "lr": (0.5, 1.0, 0.5),
        "hr": (0.5, 0.5, 0.1),
        "flip": (1.0, 0.1, 0.5),
        "color": (1.0, 0.1, 0.1),
    }


# ------------------------------------------------------------------------------------------- scale of consistency terms


def street_batch(size=SIZE) -> Sample:
    return collate([SyntheticDataset("driving", (2 * size[0], 2 * size[1]), length=1)[0]])


def gradient_norm(network, levels, batch) -> float:
    torch.manual_seed(1)
    network.zero_grad(set_to_none=True)
    size = tuple(side // 2 for side in batch.frames.shape[-2:])
    PyramidLoss(network, None, size, levels)(batch, torch.Tensor.backward)
    return float(torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm())


def test_consistency_gradients_are_of_the_order_of_the_levels_own():
    """Gradient of each weighted term relative to that of the weighted loss of its level: between 0.005 and 2. Averaged
    over the positions, distributions would give 2.5e-4 and 2e-6."""
    torch.manual_seed(0)
    network = SmallDepth(residual_drop=0.9, etm="etm#").train()
    network.set_start_depth(8.0)
    set_drop_progress(network, 1, 2)
    batch, zero = street_batch((32, 64)), LevelWeights(0.0)
    for name in ("lr", "hr", "flip", "color"):
        paper = PAPER_LEVELS[name]
        own = gradient_norm(network, {"cr": zero, name: LevelWeights(paper.loss)}, batch)
        for term in ("feature", "disparity"):
            weights = {**vars(paper), "loss": 0.0, "feature": 0.0, "disparity": 0.0, term: getattr(paper, term)}
            share = gradient_norm(network, {"cr": zero, name: LevelWeights(**weights)}, batch) / own
            assert 0.005 < share < 2, (name, term)


def test_distribution_errors_are_sums_over_the_image():
    """‖·‖₁ of eq. 22: two distributions without overlap differ by 2, however large the image is."""
    for size in ((8, 8), (32, 64)):
        a, b = torch.zeros(2, 3, *size), torch.zeros(2, 3, *size)
        a[..., 0, 0], b[..., -1, -1] = 50.0, 50.0
        assert consistency(ReferenceMap(a), b, "softmax") == pytest.approx(2.0)
        lines = consistency(ReferenceMap(a), b, "softmax_lines")
        assert 0 < lines < 2


def test_feature_metrics_are_bounded_or_scale_invariant():
    a, b = torch.rand(2, 2, 5, 12, 20, generator=torch.Generator().manual_seed(0))

    def errors(metric):
        return [float(consistency(ReferenceMap(factor * a), factor * b, metric)) for factor in (1.0, 30.0)]

    for metric in ("softmax_standardised", "softmax_lines"):
        plain, scaled = errors(metric)
        assert plain == pytest.approx(scaled, rel=1e-3)
    plain, scaled = errors("softmax_sigmoid")
    assert scaled < plain, "the sigmoids saturate"
    plain, scaled = errors("softmax")
    assert scaled > 3 * plain


def test_levels_are_reduced_by_the_area_average():
    """OpenCV's area average, which `Framing` uses in deployment. Other filters would blur the levels."""
    batch = street_batch()
    inputs = dict(PyramidLoss(PointwiseDepth(), None, SIZE).inputs(batch))
    original = batch.frames[0, 1].permute(1, 2, 0).numpy()
    for name, (height, width) in (("cr", SIZE), ("lr", (SIZE[0] // 2, SIZE[1] // 2))):
        expected = cv2.resize(original, (width, height), interpolation=cv2.INTER_AREA)
        found = inputs[name].frames[0, 1].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_levels_can_share_their_drop_masks():
    """The network is equivariant to mirroring except for drop: with shared masks the consistency of flip is zero."""

    class Dropping(PointwiseDepth):
        def __init__(self):
            super().__init__()
            self.drop = DropBranch(0.5, constant=True)

        def forward(self, image):
            features = torch.tanh(self.features(image))
            features = features + self.drop(features)
            return DepthFeatures((torch.sigmoid(self.head(features)),), (features[..., ::2, ::2],), (features,))

    torch.manual_seed(0)
    network, batch = Dropping().double().train(), scene_sample(copies=4)
    levels = {"cr": LevelWeights(1.0), "flip": LevelWeights(1.0, 0.1, 0.5)}
    shared = PyramidLoss(network, None, SIZE, levels, share_masks=True)(batch, torch.Tensor.backward).levels["flip"]
    own = PyramidLoss(network, None, SIZE, levels)(batch, torch.Tensor.backward).levels["flip"]
    assert shared.feature_consistency < 1e-14
    assert own.feature_consistency > 0.1
    draws = [network.drop(torch.ones(64, 1)) for _ in range(2)]
    assert not torch.equal(*draws), "outside of the loss every pass draws a mask"


def test_outputs_can_be_rescaled_to_cr_before_their_losses():
    """Table VIII, use_cr: the losses of lr and hr use the frames of cr and the level's interpolated depth."""

    class Constant(TrueDepth):
        def forward(self, image):
            full = image.new_full((len(image), 1, *image.shape[-2:]), float(self.disparity.detach().mean()))
            full = full + 0 * self.disparity.sum()
            return DepthFeatures((full,), (image[..., ::2, ::2],), (image,))

    batch, weights = scene_sample(), BaseWeights(feature=0.0)
    levels = {"cr": LevelWeights(1.0), "lr": LevelWeights(1.0), "hr": LevelWeights(1.0)}

    def losses(rescaled):
        loss = PyramidLoss(Constant(), None, SIZE, levels, weights, rescale_to_cr=rescaled)
        return {name: float(level.photometric) for name, level in loss(batch, torch.Tensor.backward).levels.items()}

    own, rescaled = losses(False), losses(True)
    assert own["lr"] != pytest.approx(own["cr"], rel=1e-3)
    assert rescaled == pytest.approx(dict.fromkeys(levels, own["cr"]))
