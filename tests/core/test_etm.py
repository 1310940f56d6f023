"""ETM: equal output after reparameterisation (docs/method.md, sections 2.3, 2.4). Drop function and its schedule."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fadepth_core.models.layers.drop import DropBranch, ScheduledRate, set_drop_progress, shared_masks
from fadepth_core.models.layers.etm import (
    ETM_VARIANTS,
    ETMConfig,
    ETMConv2d,
    centre_crop,
    convert_to_etm,
    etm_config,
)

GRID = [
    (k, s, d, g, ci, co)
    for k, s, d in itertools.product((1, 3, 5, 7), (1, 2), (1, 2))
    for g, ci, co in ((1, 4, 4), (1, 4, 6), (2, 4, 4), (2, 4, 6), (4, 4, 4), (4, 4, 8))
]


def trained_etm(k, s, d, g, ci, co, config=ETM_VARIANTS["etm"], dtype=torch.float64):
    """An ETM with random changes to every parameter."""
    torch.manual_seed(0)
    layer = ETMConv2d(ci, co, k, s, d, g, bias=True, config=config).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_reparameterized_equals_evaluation(dtype, bound):
    for k, s, d, g, ci, co in GRID:
        layer = trained_etm(k, s, d, g, ci, co, dtype=dtype).eval()
        x = torch.randn(2, ci, 19, 23, dtype=dtype)
        expected, plain = layer(x), layer.reparameterize()
        assert type(plain) is torch.nn.Conv2d
        actual = plain(x)
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= bound * expected.abs().max(), (k, s, d, g, ci, co)


@pytest.mark.parametrize(
    "config", [ETM_VARIANTS["etm"], ETMConfig(all_shapes=True, variance="none")], ids=["etm", "all_shapes"]
)
def test_merged_training_step_equals_explicit_branches(config):
    """Eq. 16 against eq. 15a, where every branch is convolved separately: outputs and gradients for the same masks."""
    for k, s, d, g, ci, co in GRID[::3]:
        layer = trained_etm(k, s, d, g, ci, co, config).train()
        layer.branch_rate.set_progress(1, 1)
        masks = layer.sample_masks()
        x = torch.randn(2, ci, 13, 17, dtype=torch.float64)

        merged = F.conv2d(x, layer.merged_kernel(masks), layer.bias, s, layer.padding, d, g)
        explicit = layer.bias[None, :, None, None]
        for kernel in layer.branch_kernels(masks):
            padding = [d * (n - 1) // 2 for n in kernel.shape[-2:]]
            explicit = explicit + F.conv2d(x, kernel, None, s, padding, d, g)
        assert (merged - explicit).abs().max() <= 1e-10, (k, s, d, g, ci, co)

        parameters = list(layer.parameters())
        a = torch.autograd.grad(merged.square().sum(), parameters, allow_unused=True)
        b = torch.autograd.grad(explicit.square().sum(), parameters, allow_unused=True)
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_branches_of_each_variant():
    def shapes(config, ci=4, co=4):
        return [branch.shape for branch in ETMConv2d(ci, co, 3, config=config).branches]

    assert shapes(ETM_VARIANTS["etm"]) == [None, (3, 1), (1, 3), (3, 3), (3, 3)]
    assert shapes(ETM_VARIANTS["etm*"]) == [None, (3, 1), (1, 3), (3, 3)]
    assert shapes(ETM_VARIANTS["etm"], co=6) == [(3, 1), (1, 3), (3, 3), (3, 3)], "no identity where Ci != Co"
    assert shapes(ETMConfig(all_shapes=True)) == [None, (1, 1), (1, 3), (3, 1), (3, 3), (3, 3)]


def test_etm_sharp_starts_from_the_largest_filter():
    layer = ETMConv2d(4, 4, 5, config=ETM_VARIANTS["etm#"])
    largest = layer.branches[-1].weight
    for branch in layer.branches[1:-1]:
        assert torch.equal(branch.weight, centre_crop(largest, branch.shape))


def test_with_a_bias_the_merged_kernel_starts_as_the_average_of_the_branches():
    torch.manual_seed(0)
    layer = ETMConv2d(16, 1, 3, bias=True, config=ETM_VARIANTS["etm"])
    assert layer.merged_kernel().std() < layer.branches[-1].weight.std()


def test_every_branch_starts_with_factor_one():
    layer = ETMConv2d(4, 4, 3, groups=4)
    for branch, kernel in zip(layer.branches, layer.branch_kernels(), strict=True):
        torch.testing.assert_close(kernel, layer.identity if branch.shape is None else branch.weight)


def test_standard_branch_is_never_dropped_and_others_keep_their_mean():
    torch.manual_seed(0)
    layer = ETMConv2d(2, 2, 3, config=ETMConfig(branch_drop=0.4, element_drop=0.3)).train()
    layer.branch_rate.set_progress(1, 1)
    draws = [layer.sample_masks() for _ in range(4000)]
    assert {float(draw[-1][0]) for draw in draws} == {1.0}
    assert draws[0][-1][1] is None
    for branch in range(4):
        factors = torch.stack([draw[branch][0] for draw in draws])
        assert sorted(factors.unique().tolist()) == pytest.approx([0.0, 1 / 0.6])
        assert factors.mean() == pytest.approx(1.0, abs=0.06)
    elements = torch.stack([draw[3][1] for draw in draws])
    assert elements.mean() == pytest.approx(1.0, abs=0.01)
    assert (elements == 0).float().mean() == pytest.approx(0.3, abs=0.01)


def test_evaluation_is_deterministic():
    layer = trained_etm(3, 1, 1, 1, 4, 4).eval()
    layer.branch_rate.set_progress(1, 1)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 0, "bias": True},
        {"kernel_size": 5, "padding": 2, "stride": 2, "groups": 4, "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": (3, 1), "padding": (1, 0)},
        {"kernel_size": 7, "padding": 1, "stride": 2},
    ],
)
def test_convolutions_become_etms_with_the_same_output(options):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 8, **options)).double().eval()
    x = torch.randn(2, 4, 19, 23, dtype=torch.float64)
    expected = network(x)
    convert_to_etm(network, ETM_VARIANTS["etm"], keep_kernels=True)
    assert [type(layer) for layer in network] == [torch.nn.Conv2d, ETMConv2d]
    torch.testing.assert_close(network.eval()(x), expected, rtol=1e-10, atol=1e-10)
    plain = network[1].reparameterize()
    torch.testing.assert_close(plain(network[0](x)), expected, rtol=1e-10, atol=1e-10)


def test_convolutions_with_other_padding_or_unequal_strides_are_refused():
    for conv in (torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.nn.Conv2d(4, 4, 3, stride=(1, 2))):
        with pytest.raises(ValueError, match="ETM"):
            convert_to_etm(torch.nn.Sequential(conv), ETM_VARIANTS["etm"], keep_kernels=True)


# ------------------------------------------------------------------------------------------------------------- options


def test_config_from_a_mapping():
    options = {"branch_drop": 0.2, "element_drop": 0, "dropconv": False, "variance": "none"}
    assert etm_config(options) == ETMConfig(branch_drop=0.2, element_drop=0.0, dropconv=False, variance="none")
    assert etm_config({}) == ETMConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 0.1}, "unknown ETM option 'drop'; known options: branch_drop, element_drop, dropconv,"),
        ({"branch_drop": "0.1"}, "'branch_drop' must be of type float, got '0.1'"),
        ({"branch_drop": True}, "'branch_drop' must be of type float, got True"),
        ({"dropconv": 1}, "'dropconv' must be of type bool, got 1"),
        ({"variance": "batch"}, "variance must be 'weight' or 'none', got 'batch'"),
        ({"branch_drop": 1.0}, r"branch_drop must lie in \[0, 1\), got 1.0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        etm_config(options)


# -------------------------------------------------------------------------------------------- drop function, eq. 4, 5


def test_drop_is_per_sample_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropBranch(0.75, constant=True).train()
    out = drop(torch.ones(4000, 2, 3, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all(), "a sample is kept or dropped as a whole"
    assert set(out.unique().tolist()) == {0.0, 4.0}
    assert out.mean() == pytest.approx(1.0, abs=0.1)


def test_drop_is_the_identity_in_evaluation_and_at_rate_zero():
    x = torch.randn(3, 2, 4, 4)
    assert DropBranch(0.9, constant=True).eval()(x) is x
    assert DropBranch(0.9).train()(x) is x, "the schedule starts at zero"


def test_schedule_is_linear_and_not_in_the_state_dict():
    module = torch.nn.Sequential(DropBranch(0.8), DropBranch(0.4), DropBranch(0.5, constant=True))
    set_drop_progress(module, 25, 100)
    assert [m.rate for m in module] == [pytest.approx(0.2), pytest.approx(0.1), 0.5]
    set_drop_progress(module, 250, 100)
    assert module[0].rate == 0.8, "beyond N the rate stays at P"
    assert not module.state_dict(), "a resumed run sets its own iteration"


def test_rate_one_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        ScheduledRate(1.0)


def test_shared_masks_are_used_by_every_pass_inside_the_context_only():
    """Branch and element masks of an ETM, and the per-sample masks of a drop function."""
    torch.manual_seed(0)
    etm = ETMConv2d(4, 4, 3, config=ETMConfig(branch_drop=0.5, element_drop=0.5, constant_rate=True)).train()
    drop = DropBranch(0.5, constant=True).train()
    network, x, ones = torch.nn.ModuleList([etm, drop]), torch.randn(2, 4, 8, 8), torch.ones(32, 1)
    with shared_masks(network):
        assert torch.equal(etm(x), etm(x))
        assert torch.equal(drop(ones), drop(ones))
        assert drop(torch.ones(8, 1)).shape == (8, 1), "a separate mask for another batch size"
    assert not torch.equal(etm(x), etm(x))
    assert not torch.equal(drop(ones), drop(ones))
