"""APX: zero where the student's maps have the teacher's shape, what each reading leaves open, and what the mask hides."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fadepth_core.losses import ApxLoss, ApxReading, ApxWeights, Signals
from fadepth_core.losses.apx import CHANNELS, DISTANCES, DISTRIBUTIONS
from fadepth_core.models.smalldepth import DepthFeatures

SIZES = ((16, 24), (8, 12), (4, 6))
READINGS = [
    ApxReading(channels, distribution, distance, mask, renormalise)
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


def mixed(a, b, share):
    """`share` of the way from a to b."""
    kinds = ("disparities", "encoder", "decoder")
    return Signals(*(tuple(x.lerp(y, share) for x, y in zip(getattr(a, k), getattr(b, k), strict=True)) for k in kinds))


def depth_only(*rows):
    """One image whose inverse depth is `rows`, at a single scale."""
    return Signals((torch.tensor(rows)[None, None],))


@torch.no_grad()
def figure(*arguments) -> float:
    return float(loss(*arguments))


def loss(reading, student, teacher, weights=ApxWeights(1, 1, 1)):  # noqa: B008 - immutable
    apx = ApxLoss(weights, reading, {"encoder": [(3, 3)] * 3, "decoder": [(5, 5)] * 3})
    for projection in (conv for convs in apx.projections.values() for conv in convs):
        torch.nn.init.eye_(projection.weight[:, :, 0, 0])
    return apx(student, teacher)


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_zero_at_the_teacher_and_growing_away_from_it(reading):
    teacher, other = signals(0), signals(1)
    values = [figure(reading, mixed(teacher, other, share), teacher) for share in (0.0, 0.2, 0.5, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[1] > 1e-3


def test_values_by_hand():
    """One row: columns have one pixel each, and so no shape; the row's shares are (¼, ¾) against (½, ½)."""
    student, teacher = depth_only([1.0, 3.0]), depth_only([2.0, 2.0])
    assert figure(ApxReading(distance="l1"), student, teacher, DEPTH_ONLY) == pytest.approx(0.5 / 2)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert figure(ApxReading(distance="kl"), student, teacher, DEPTH_ONLY) == pytest.approx(kl / 2)
    p = 1 / (1 + math.exp(2.0))
    assert figure(ApxReading(distribution="softmax", distance="l1"), student, teacher, DEPTH_ONLY) == pytest.approx(
        0.5 - p
    )
    weighted = ApxWeights(0, 0, 0.3)
    assert figure(ApxReading(distance="l1"), student, teacher, weighted) == pytest.approx(0.3 * 0.25)


def test_what_a_distribution_leaves_open():
    """Ratios leave a factor open, as median scaling does; softmax an offset, which nothing takes away at test time."""
    teacher = signals(0)
    scaled = Signals(tuple(3 * x for x in teacher.disparities))
    shifted = Signals(tuple(x + 0.5 for x in teacher.disparities))
    values = {
        (reading, name): figure(ApxReading(distribution=reading, distance="l1"), student, teacher, DEPTH_ONLY)
        for reading in DISTRIBUTIONS
        for name, student in (("scaled", scaled), ("shifted", shifted))
    }
    assert values["ratio", "scaled"] == pytest.approx(0, abs=1e-5)
    assert values["softmax", "shifted"] == pytest.approx(0, abs=1e-5)
    assert values["ratio", "shifted"] > 0.05
    assert values["softmax", "scaled"] > 0.05


def test_mask_hides_what_the_teacher_puts_far_away():
    """Three columns near, one (sky) far; the student disagrees about the far one alone."""
    near = [0.5, 0.4, 0.6]
    teacher, student = depth_only(*[[*near, 0.01]] * 4), depth_only(*[[*near, 0.6]] * 4)
    hidden, shown, renormalised = (
        figure(reading, student, teacher, DEPTH_ONLY)
        for reading in (
            ApxReading(distance="l1", renormalise=False),
            ApxReading(distance="l1", renormalise=False, mask=None),
            ApxReading(),
        )
    )
    # What is left without renormalising: the far column takes its share of the row from the others.
    assert hidden == pytest.approx(4 * 0.5 * (1.5 / 1.51 - 1.5 / 2.1) / 4, rel=1e-4)
    assert shown > 1.5 * hidden
    assert renormalised == pytest.approx(0, abs=1e-6)


def test_an_image_with_nothing_to_trust_is_left_out():
    """κ above one hides a wall of one distance altogether; the other image counts as if it were alone."""
    wall = torch.full((1, 1, 8, 8), 0.5)
    ramp, other = torch.linspace(0.1, 1, 64).view(1, 1, 8, 8), torch.rand(1, 1, 8, 8) + 0.1
    reading = ApxReading(mask=1.2)
    alone = loss(reading, Signals((other,)), Signals((ramp,)), DEPTH_ONLY)
    student = torch.cat([other, other]).requires_grad_()
    both = loss(reading, Signals((student,)), Signals((torch.cat([ramp, wall]),)), DEPTH_ONLY)
    assert both.item() == pytest.approx(alone.item(), rel=1e-5)
    both.backward()
    assert student.grad[1].eq(0).all()
    nothing = loss(reading, Signals((other,)), Signals((wall,)), DEPTH_ONLY)
    assert nothing == 0


def test_features_agree_up_to_gain_and_offset():
    teacher = signals(0)
    louder = Signals(
        teacher.disparities, tuple(4 * x + 7 for x in teacher.encoder), tuple(0.1 * x - 2 for x in teacher.decoder)
    )
    assert figure(ApxReading(), louder, teacher) == pytest.approx(0, abs=1e-4)
    inverted = Signals(teacher.disparities, tuple(-x for x in teacher.encoder), teacher.decoder)
    assert figure(ApxReading(), inverted, teacher) > 0.1


def test_renormalised_features_know_nothing_of_what_is_masked():
    disparity = torch.full((1, 1, 8, 8), 0.5)
    disparity[..., 5:] = 0.01  # masked
    features = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = features.clone()
    other[..., 5:] += 20
    teacher, student = Signals((disparity,), (features,)), Signals((disparity,), (other,))
    weights = ApxWeights(1, 0, 0)
    assert figure(ApxReading(), student, teacher, weights) == pytest.approx(0, abs=1e-5)
    assert figure(ApxReading(renormalise=False), student, teacher, weights) > 0.1


def test_only_what_is_compared_has_projections():
    apx = ApxLoss(ApxWeights(0, 1, 1), ApxReading(channels="projection"), {"decoder": [(3, 4)] * 3})
    assert [tuple(p.shape) for p in apx.parameters()] == [(4, 3, 1, 1)] * 3


def test_a_map_without_shape_has_gradients_that_are_numbers():
    flat = Signals((torch.full((1, 1, 8, 8), 0.5),), (torch.zeros(1, 3, 8, 8, requires_grad=True),))
    teacher = Signals((torch.rand(1, 1, 8, 8) + 0.1,), (torch.randn(1, 3, 8, 8),))
    loss(ApxReading(), flat, teacher, ApxWeights(1, 0, 1)).backward()
    assert flat.encoder[0].grad.isfinite().all()


def test_projections_learn_to_align_channels():
    torch.manual_seed(0)
    teacher = signals(0, widths=(4, 6))
    student = Signals(teacher.disparities, tuple(x[:, [2, 0, 1]] for x in teacher.encoder), teacher.decoder)
    apx = ApxLoss(ApxWeights(1, 0, 0), ApxReading(channels="projection"), {"encoder": [(3, 4)] * 3})
    optimizer = torch.optim.Adam(apx.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = apx(student, teacher)
        value.backward()
        optimizer.step()
        values.append(value.item())
    # Three of the teacher's four channels are there to be found.
    assert values[-1] < 0.5 * values[0]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="distance must be one of l1, kl, got 'l2'"):
        ApxReading(distance="l2")
    with pytest.raises(ValueError, match="projections need the channels"):
        ApxLoss(ApxWeights(), ApxReading(channels="projection"))
    teacher = signals(0)
    smaller = Signals(teacher.disparities[1:], teacher.encoder, teacher.decoder)
    with pytest.raises(ValueError, match=r"the student's disparities have sizes .*, the teacher's"):
        ApxLoss()(smaller, teacher)


def test_signals_are_inverse_depth():
    outputs = DepthFeatures((torch.tensor([[[[0.0, 1.0]]]]),), (), ())
    disparity = Signals.of(outputs, 0.5, 20.0).disparities[0]
    torch.testing.assert_close(disparity, torch.tensor([[[[1 / 20.0, 1 / 0.5]]]]))
