"""SmallDepth: what the paper says of its size, and that deployment does not change its answer."""

import pytest
import torch

from depth_networks import as_trained, assert_answers_about_8_metres
from fadepth_core.models import LAYOUTS, SmallDepth
from fadepth_core.models.complexity import complexity, parameter_count
from fadepth_core.models.layers.head import disparity_to_depth
from fadepth_core.models.layers.sparse import SparseDownsample


def lived_in(network, dtype=torch.float64):
    torch.manual_seed(1)
    return as_trained(network.to(dtype), (torch.randn(2, 3, 64, 96, dtype=dtype) for _ in range(8)))


def relative_disparity_error(a, b):
    return (1 - disparity_to_depth(b) / disparity_to_depth(a)).abs().max().item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("etm", [None, "etm", "etm*", "etm#"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_fused_equals_trained(layout, etm, dtype, bound):
    network = lived_in(SmallDepth(layout, residual_drop=0.3, etm=etm), dtype)
    x = torch.randn(2, 3, 96, 160, dtype=dtype)
    with torch.no_grad():
        expected = network(x).disparities[0]
        assert expected.std() > 0.01, "a constant output would prove nothing"
        assert relative_disparity_error(network.fuse()(x), expected) <= bound


@pytest.mark.parametrize("etm", [None, "etm*", "etm#"])
def test_training_goes_on_from_a_deployed_network(etm):
    """Loaded, it answers the same; and its first step in training, with the batch's own statistics, hardly changes that."""
    fused = lived_in(SmallDepth()).fuse()
    network = SmallDepth(residual_drop=0.0, etm=etm).double()
    images = torch.randn(4, 3, 64, 96, dtype=torch.float64)
    network.load_fused(fused, images)
    with torch.no_grad():
        expected, loaded = fused(images), network.eval()(images).disparities
        assert relative_disparity_error(loaded[0], expected) < 1e-10
        assert relative_disparity_error(network.fuse()(images), expected) < 1e-10
        assert all(x.std() == 0 for x in loaded[1:])
        in_training = network.train()(images).disparities[0]
    # Dropconv loses a tenth of its weights in every step; the others compute exactly the same.
    assert (in_training / expected - 1).abs().median() < (0.1 if etm == "etm#" else 1e-6)


def test_fusing_leaves_the_trained_network_alone():
    network = lived_in(SmallDepth(etm="etm"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train().fuse()
    assert network.training
    assert all(m.training for m in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_complexity_is_the_papers(layout):
    """Table IV: 2.07 + 0.28 M parameters, 0.25 + 0.17 G operations at 128×416, six DSRMs."""
    network = SmallDepth(layout)
    encoder = complexity(network, (1, 3, 128, 416), network.encoder_modules())
    decoder = complexity(network, (1, 3, 128, 416), network.decoder_modules())
    fused = parameter_count([network.fuse()])
    assert fused == pytest.approx(2.35e6, rel=0.02)
    assert encoder.operations + decoder.operations == pytest.approx(0.42e9, rel=0.03)
    assert encoder.parameters == pytest.approx(2.07e6, rel=0.03)
    assert decoder.parameters == pytest.approx(0.28e6, rel=0.02)
    assert sum(stage.blocks for stage in LAYOUTS[layout].stages) == 6


@pytest.mark.parametrize("etm", ["etm", "etm*", "etm#"])
def test_etm_costs_nothing_once_merged(etm):
    plain, merged = SmallDepth().fuse(), SmallDepth(etm=etm).fuse()
    assert complexity(merged, (1, 3, 64, 96)) == complexity(plain, (1, 3, 64, 96))


@pytest.mark.parametrize("size", [(64, 208), (33, 47), (100, 170), (128, 416)])
def test_any_size_works(size):
    network = lived_in(SmallDepth(), torch.float32)
    out = network(torch.randn(1, 3, *size))
    h, w = size
    half = ((h + 1) // 2, (w + 1) // 2)
    quarter = ((half[0] + 1) // 2, (half[1] + 1) // 2)
    assert [tuple(d.shape[-2:]) for d in out.disparities] == [size, half, quarter]
    assert [f.shape[-1] for f in out.encoder] == [f.shape[-1] for f in (*out.decoder[1:], out.encoder[-1])]
    assert network.fuse()(torch.randn(1, 3, *size)).shape == (1, 1, *size)


def test_channel_doubling_needs_a_multiple():
    with pytest.raises(ValueError, match="multiple of 32, got 40"):
        SparseDownsample(32, 40)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown SmallDepth layout 'huge'; known layouts: smalldepth, smalldepth_k5"):
        SmallDepth("huge")
    with pytest.raises(ValueError, match="unknown ETM variant 'etm2'"):
        SmallDepth(etm="etm2")


def test_training_reaches_every_parameter():
    network = SmallDepth(residual_drop=0.5, etm="etm#").train()
    out = network(torch.randn(2, 3, 64, 96))
    sum(d.mean() for d in out.disparities).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("etm", [None, "etm#"])
def test_start_depth(etm):
    torch.manual_seed(0)
    network = SmallDepth(etm=etm)
    assert_answers_about_8_metres(network, torch.randn(2, 3, 64, 96))
    with pytest.raises(ValueError, match=r"between 0.1 and 100.0 m, got 200"):
        network.set_start_depth(200)
