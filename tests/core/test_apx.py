"""APX loss: zero for the teacher's maps, the invariances of each option, and the effect of the mask."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fadepth_core.losses import ApxLoss, ApxOptions, ApxWeights, Signals
from fadepth_core.losses.apx import CHANNELS, DISTANCES, DISTRIBUTIONS
from fadepth_core.models.depth_network import DepthFeatures

SIZES = ((16, 24), (8, 12), (4, 6))
ALL_OPTIONS = [
    ApxOptions(channels, distribution, distance, mask, renormalise)
    for channels, distribution, distance, mask, renormalise in itertools.product(
        CHANNELS, DISTRIBUTIONS, DISTANCES, (0.2, None), (False, True)
    )
]
DEPTH_ONLY = ApxWeights(encoder=0, decoder=0)


def signals(seed, widths=(3, 5)):
    """Inverse depths between 0.02 and 1, and maps of two widths."""
    generator = torch.Generator().manual_seed(seed)
    disparities = tuple(0.02 + torch.rand(2, 1, *size, generator=generator) for size in SIZES)
    maps = [tuple(torch.randn(2, width, *size, generator=generator) for size in SIZES) for width in widths]
    return Signals(disparities, *maps)


def interpolated(a, b, share):
    """Every map of a moved by `share` towards that of b."""
    kinds = ("disparities", "encoder", "decoder")
    return Signals(*(tuple(x.lerp(y, share) for x, y in zip(getattr(a, k), getattr(b, k), strict=True)) for k in kinds))


def depth_only(*rows):
    """One image whose inverse depth is `rows`, at a single scale."""
    return Signals((torch.tensor(rows)[None, None],))


@torch.no_grad()
def loss_value(*arguments) -> float:
    return float(loss(*arguments))


def loss(options, student, teacher, weights=ApxWeights(1, 1, 1)):  # noqa: B008 - immutable
    apx = ApxLoss(weights, options, {"encoder": [(3, 3)] * 3, "decoder": [(5, 5)] * 3})
    for projection in (conv for convs in apx.projections.values() for conv in convs):
        torch.nn.init.eye_(projection.weight[:, :, 0, 0])
    return apx(student, teacher)


def test_loss_is_zero_for_the_teachers_maps_and_grows_with_the_difference():
    teacher, other = signals(0), signals(1)
    for options in ALL_OPTIONS:
        values = [loss_value(options, interpolated(teacher, other, share), teacher) for share in (0.0, 0.2, 0.5, 1.0)]
        assert values[0] == pytest.approx(0, abs=1e-6), options
        assert values == sorted(values), options
        assert values[1] > 1e-3, options


def test_values_by_hand():
    """One row of two pixels with distributions (¼, ¾) and (½, ½). Columns of one pixel contribute nothing."""
    student, teacher = depth_only([1.0, 3.0]), depth_only([2.0, 2.0])
    assert loss_value(ApxOptions(distance="l1"), student, teacher, DEPTH_ONLY) == pytest.approx(0.5 / 2)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert loss_value(ApxOptions(distance="kl"), student, teacher, DEPTH_ONLY) == pytest.approx(kl / 2)
    p = 1 / (1 + math.exp(2.0))
    assert loss_value(ApxOptions(distribution="softmax", distance="l1"), student, teacher, DEPTH_ONLY) == pytest.approx(
        0.5 - p
    )
    weighted = ApxWeights(0, 0, 0.3)
    assert loss_value(ApxOptions(distance="l1"), student, teacher, weighted) == pytest.approx(0.3 * 0.25)


def test_ratio_ignores_a_factor_and_softmax_ignores_an_offset():
    """A factor is removed by median scaling; an offset is not removed at test time."""
    teacher = signals(0)
    scaled = Signals(tuple(3 * x for x in teacher.disparities))
    shifted = Signals(tuple(x + 0.5 for x in teacher.disparities))
    values = {
        (kind, name): loss_value(ApxOptions(distribution=kind, distance="l1"), student, teacher, DEPTH_ONLY)
        for kind in DISTRIBUTIONS
        for name, student in (("scaled", scaled), ("shifted", shifted))
    }
    assert values["ratio", "scaled"] == pytest.approx(0, abs=1e-5)
    assert values["softmax", "shifted"] == pytest.approx(0, abs=1e-5)
    assert values["ratio", "shifted"] > 0.05
    assert values["softmax", "scaled"] > 0.05


def test_mask_excludes_pixels_the_teacher_places_far_away():
    """Three near columns and a far one (sky); the student differs in the far one only."""
    near = [0.5, 0.4, 0.6]
    teacher, student = depth_only(*[[*near, 0.01]] * 4), depth_only(*[[*near, 0.6]] * 4)
    masked, unmasked, renormalised = (
        loss_value(options, student, teacher, DEPTH_ONLY)
        for options in (
            ApxOptions(distance="l1", renormalise=False),
            ApxOptions(distance="l1", renormalise=False, mask=None),
            ApxOptions(),
        )
    )
    # Without renormalising, the far column changes the shares of the others in their row.
    assert masked == pytest.approx(4 * 0.5 * (1.5 / 1.51 - 1.5 / 2.1) / 4, rel=1e-4)
    assert unmasked > 1.5 * masked
    assert renormalised == pytest.approx(0, abs=1e-6)


def test_images_without_counted_pixels_are_skipped():
    """κ > 1 masks an image of constant depth completely. The loss is then that of the other image."""
    wall = torch.full((1, 1, 8, 8), 0.5)
    ramp, other = torch.linspace(0.1, 1, 64).view(1, 1, 8, 8), torch.rand(1, 1, 8, 8) + 0.1
    options = ApxOptions(mask=1.2)
    alone = loss(options, Signals((other,)), Signals((ramp,)), DEPTH_ONLY)
    student = torch.cat([other, other]).requires_grad_()
    both = loss(options, Signals((student,)), Signals((torch.cat([ramp, wall]),)), DEPTH_ONLY)
    assert both.item() == pytest.approx(alone.item(), rel=1e-5)
    both.backward()
    assert student.grad[1].eq(0).all()
    nothing = loss(options, Signals((other,)), Signals((wall,)), DEPTH_ONLY)
    assert nothing == 0


def test_features_are_compared_up_to_gain_and_offset():
    teacher = signals(0)
    scaled_and_shifted = Signals(
        teacher.disparities, tuple(4 * x + 7 for x in teacher.encoder), tuple(0.1 * x - 2 for x in teacher.decoder)
    )
    assert loss_value(ApxOptions(), scaled_and_shifted, teacher) == pytest.approx(0, abs=1e-4)
    inverted = Signals(teacher.disparities, tuple(-x for x in teacher.encoder), teacher.decoder)
    assert loss_value(ApxOptions(), inverted, teacher) > 0.1


def test_renormalised_features_do_not_depend_on_masked_pixels():
    disparity = torch.full((1, 1, 8, 8), 0.5)
    disparity[..., 5:] = 0.01  # masked
    features = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = features.clone()
    other[..., 5:] += 20
    teacher, student = Signals((disparity,), (features,)), Signals((disparity,), (other,))
    weights = ApxWeights(1, 0, 0)
    assert loss_value(ApxOptions(), student, teacher, weights) == pytest.approx(0, abs=1e-5)
    assert loss_value(ApxOptions(renormalise=False), student, teacher, weights) > 0.1


def test_only_compared_maps_have_projections():
    apx = ApxLoss(ApxWeights(0, 1, 1), ApxOptions(channels="projection"), {"decoder": [(3, 4)] * 3})
    assert [tuple(p.shape) for p in apx.parameters()] == [(4, 3, 1, 1)] * 3


def test_constant_maps_have_finite_gradients():
    flat = Signals((torch.full((1, 1, 8, 8), 0.5),), (torch.zeros(1, 3, 8, 8, requires_grad=True),))
    teacher = Signals((torch.rand(1, 1, 8, 8) + 0.1,), (torch.randn(1, 3, 8, 8),))
    loss(ApxOptions(), flat, teacher, ApxWeights(1, 0, 1)).backward()
    assert flat.encoder[0].grad.isfinite().all()


def test_projections_learn_to_align_channels():
    torch.manual_seed(0)
    teacher = signals(0, widths=(4, 6))
    student = Signals(teacher.disparities, tuple(x[:, [2, 0, 1]] for x in teacher.encoder), teacher.decoder)
    apx = ApxLoss(ApxWeights(1, 0, 0), ApxOptions(channels="projection"), {"encoder": [(3, 4)] * 3})
    optimizer = torch.optim.Adam(apx.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = apx(student, teacher)
        value.backward()
        optimizer.step()
        values.append(value.item())
    # The student has three of the teacher's four channels.
    assert values[-1] < 0.5 * values[0]


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="distance must be one of l1, kl, got 'l2'"):
        ApxOptions(distance="l2")
    with pytest.raises(ValueError, match="projections need the channels"):
        ApxLoss(ApxWeights(), ApxOptions(channels="projection"))
    teacher = signals(0)
    smaller = Signals(teacher.disparities[1:], teacher.encoder, teacher.decoder)
    with pytest.raises(ValueError, match=r"the student's disparities have sizes .*, the teacher's"):
        ApxLoss()(smaller, teacher)


def test_signals_are_inverse_depth():
    outputs = DepthFeatures((torch.tensor([[[[0.0, 1.0]]]]),), (), ())
    disparity = Signals.of(outputs, 0.5, 20.0).disparities[0]
    torch.testing.assert_close(disparity, torch.tensor([[[[1 / 20.0, 1 / 0.5]]]]))
