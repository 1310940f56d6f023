"""SmallDepth: the paper's complexity, equal output after deployment, and training from a deployed network."""

import pytest
import torch

from depth_networks import as_trained_on_noise, assert_start_depth, relative_depth_error
from fadepth_core.models import LAYOUTS, SmallDepth
from fadepth_core.models.complexity import complexity, parameter_count
from fadepth_core.models.layers.sparse import SparseDownsample


@pytest.mark.parametrize(("layout", "etm"), [("smalldepth", None), ("smalldepth", "etm"), ("smalldepth_k5", "etm#")])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_fused_equals_trained(layout, etm, dtype, bound):
    network = as_trained_on_noise(SmallDepth(layout, residual_drop=0.3, etm=etm), dtype)
    x = torch.randn(1, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        expected = network(x).disparities[0]
        assert expected.std() > 0.01, "a constant output would hide errors"
        assert relative_depth_error(network.fuse()(x), expected) <= bound


@pytest.mark.parametrize("etm", [None, "etm*", "etm#"])
def test_training_continues_from_a_deployed_network(etm):
    """The output is the same after loading, and nearly the same in training mode, with the batch's statistics."""
    fused = as_trained_on_noise(SmallDepth(), torch.float64).fuse()
    network = SmallDepth(residual_drop=0.0, etm=etm).double()
    images = torch.randn(4, 3, 64, 96, dtype=torch.float64)
    network.load_fused(fused, images)
    with torch.no_grad():
        expected, loaded = fused(images), network.eval()(images).disparities
        assert relative_depth_error(loaded[0], expected) < 1e-10
        assert relative_depth_error(network.fuse()(images), expected) < 1e-10
        assert all(x.std() == 0 for x in loaded[1:]), "the coarser heads predict a constant"
        in_training = network.train()(images).disparities[0]
    # Dropconv drops a tenth of its weights in every step; the other variants give the same output.
    assert (in_training / expected - 1).abs().median() < (0.1 if etm == "etm#" else 1e-6)


def test_fuse_does_not_change_the_trained_network():
    network = as_trained_on_noise(SmallDepth(etm="etm"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train().fuse()
    assert network.training
    assert all(m.training for m in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_complexity_equals_the_papers(layout):
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


def test_merged_etm_adds_no_cost():
    plain, merged = SmallDepth().fuse(), SmallDepth(etm="etm").fuse()
    assert complexity(merged, (1, 3, 64, 96)) == complexity(plain, (1, 3, 64, 96))


@pytest.mark.parametrize("size", [(64, 208), (33, 47)])
def test_any_size_works(size):
    network = as_trained_on_noise(SmallDepth())
    out = network(torch.randn(1, 3, *size))
    h, w = size
    half = ((h + 1) // 2, (w + 1) // 2)
    quarter = ((half[0] + 1) // 2, (half[1] + 1) // 2)
    assert [tuple(d.shape[-2:]) for d in out.disparities] == [size, half, quarter]
    assert [f.shape[-1] for f in out.encoder] == [f.shape[-1] for f in (*out.decoder[1:], out.encoder[-1])]
    assert network.fuse()(torch.randn(1, 3, *size)).shape == (1, 1, *size)


def test_downsampling_needs_a_multiple_of_its_input_channels():
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
    assert_start_depth(network, torch.randn(2, 3, 64, 96))
    with pytest.raises(ValueError, match=r"between 0.1 and 100.0 m, got 200"):
        network.set_start_depth(200)
