"""Depth networks with an encoder of timm: the paper's Table IV, training and deployment."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from depth_networks import as_trained_on_noise, assert_start_depth, exported_depths
from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.models import build_model
from fadepth_core.models.complexity import PRINTED, complexity, parameter_count
from fadepth_core.models.layers.backbone import with_fixed_padding
from fadepth_core.models.layers.etm import ETMConv2d
from fadepth_core.runtime.checkpoint import Checkpoint, Description
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

NAMES = ("resnet18", "mobilenetv3", "unet")
PAPER_NAMES = ("resnet18", "mobilenetv3")


@pytest.fixture(autouse=True)
def _timm(timm):
    """Skip without timm: every network here has an encoder of timm."""


def rounded(value: float, printed: str) -> str:
    return f"{value:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize("name", PAPER_NAMES)
def test_complexity_equals_the_papers(name):
    """Table IV, to the last printed digit. A merged ETM has no additional parameters."""
    network, printed = build_model(name), PRINTED[name]
    assert network.encoder_blocks() == int(printed.blocks)
    for place, modules in enumerate((network.encoder_modules(), network.decoder_modules())):
        cost = complexity(network, (1, 3, 128, 416), modules)
        for value, text in (
            (cost.parameters / 1e6, printed.parameters[place]),
            (cost.operations / 1e9, printed.operations[place]),
            (cost.memory_access / 1e6, printed.memory_access[place]),
        ):
            assert rounded(value, text) == text
    plain, merged = network.fuse(), build_model(name, etm="etm").fuse()
    assert parameter_count([plain]) == parameter_count([merged])


@pytest.mark.parametrize("size", [(33, 47), (32, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_map_sizes_equal_smalldepths(name, size):
    image = torch.zeros(1, 3, *size)
    with torch.no_grad():
        out, reference = build_model(name).eval()(image), build_model("smalldepth").eval()(image)
    for maps in ("disparities", "encoder", "decoder"):
        sizes = [x.shape[-2:] for x in getattr(out, maps)]
        assert sizes == [x.shape[-2:] for x in getattr(reference, maps)], maps
    assert [x.shape[1] for x in out.decoder] == [16, 32, 64, 128, 256]


@pytest.mark.parametrize(
    ("name", "etm"), [("resnet18", None), ("resnet18", "etm"), ("mobilenetv3", "etm#"), ("unet", None)]
)
def test_fused_equals_trained(name, etm):
    network = as_trained_on_noise(build_model(name, etm=etm))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fused = network.fuse()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = network(x).disparities[0]
        assert expected.std() > 0.002, "a constant output would hide errors"
        torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)
    assert not fused.training, "the deployment form is in evaluation mode"
    assert not any(isinstance(module, (nn.BatchNorm2d, ETMConv2d)) for module in fused.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", PAPER_NAMES)
def test_etm_replaces_every_filter_larger_than_1x1(name):
    network = build_model(name, etm={"dropconv": False})
    larger = [m for m in network.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    assert larger == []
    assert all(isinstance(head.conv, ETMConv2d) for head in network.heads)
    network.train()
    sum(x.mean() for x in network(torch.randn(2, 3, 64, 96)).disparities).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "encoder", "etm"), [("resnet18", "resnet18", None), ("mobilenetv3", "mobilenetv3_large_100", "etm")]
)
def test_encoder_takes_imagenet_weights_from_a_file(timm, tmp_path, name, encoder, etm):
    """Also with ETM the encoder's maps are those of the weights."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    trained = as_trained_on_noise(timm.create_model(encoder, pretrained=False))
    save_file(trained.state_dict(), tmp_path / "encoder.safetensors")
    network = build_model(name, weights=tmp_path / "encoder.safetensors", etm=etm).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = trained.forward_intermediates(image, intermediates_only=True)
        found = network.encoder(image)
    for a, b in zip(found, expected[:4] if name == "mobilenetv3" else expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    with pytest.raises(FileNotFoundError, match=rf"{encoder} at .*absent\.pth"):
        build_model(name, weights=tmp_path / "absent.pth")


@pytest.mark.parametrize(("name", "etm"), [("resnet18", "etm#"), ("unet", None)])
def test_start_depth(name, etm):
    torch.manual_seed(0)
    network = build_model(name, etm=etm)
    assert_start_depth(network, torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize("name", NAMES)
def test_exported_network_equals_pytorch(name, tmp_path):
    """The ONNX file in OpenVINO, and the checkpoint."""
    size = (96, 160)
    options = {"encoder": "tf_efficientnet_lite0"} if name == "unet" else {"etm": {"branch_drop": 0.2}}
    network = as_trained_on_noise(build_model(name, **options))
    description = Description(
        name, "training", size, (0.1, 100.0), PIXEL_MEAN, PIXEL_STD, trained=False, options=options
    )
    fused = network.fuse()
    export_checkpoint(fused, description, tmp_path / "net.safetensors")
    rng = np.random.default_rng(0)
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 96)
        loaded = load_network(Checkpoint(tmp_path / "net.safetensors"))
        torch.testing.assert_close(loaded(x), fused(x), rtol=1e-6, atol=1e-6)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    expected, depth = exported_depths(fused, tmp_path / "net.onnx", image)
    assert expected.std() > 0.005 * expected.mean(), "a constant output would hide errors"
    assert np.abs(depth / expected - 1).max() < 1e-4


@pytest.mark.parametrize("name", ["smalldepth", "hqdecv2", *NAMES])
def test_features_are_centred_at_the_feature_offset(name):
    """The receptive field of feature i of the map at 1/2 is centred on pixel 2·i + feature_offset of the image."""
    torch.manual_seed(0)
    network = build_model(name).eval()
    image = torch.randn(1, 3, 68, 100, requires_grad=True)
    row, column = 13, 20
    network(image).encoder[0][0, :, row, column].sum().backward()
    rows, columns = (image.grad.abs().sum((0, 1, dim)).nonzero().flatten() for dim in (3, 2))
    centre = [(reached.min() + reached.max()).item() / 2 for reached in (rows, columns)]
    assert centre == [2 * row + network.feature_offset, 2 * column + network.feature_offset]


def test_unet_takes_another_encoder():
    network = as_trained_on_noise(build_model("unet", encoder="tf_efficientnetv2_s"))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.fuse()(x), network(x).disparities[0], rtol=1e-5, atol=1e-5)


def test_hqdecv2_takes_another_efficientnet():
    network = as_trained_on_noise(build_model("hqdecv2", encoder="tf_efficientnet_lite0"))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.fuse()(x), network(x).disparities[0], rtol=1e-4, atol=1e-5)
    assert network.encoder_blocks() == 16
    with pytest.raises(ValueError, match=r"takes an EfficientNet .* not 'resnet18'"):
        build_model("hqdecv2", encoder="resnet18")


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match=r"unknown encoder 'vgg'; known encoders: tf_efficientnetv2_s, "):
        build_model("unet", encoder="vgg")


@pytest.mark.parametrize("size", [3, 5, 7])
def test_fixed_padding_is_tensorflows(size):
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    conv = Conv2dSame(4, 4, size, stride=2, groups=2)
    fixed = with_fixed_padding(nn.Sequential(conv))
    x = torch.randn(1, 4, 12, 20)
    torch.testing.assert_close(fixed(x), conv(x))


def test_timm_can_be_imported_in_a_fresh_process():
    """Even with PyPI's torchvision, whose compiled operators the CPU build of torch cannot load."""
    program = "from fadepth_core.models.layers.backbone import import_timm; print(import_timm().__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
