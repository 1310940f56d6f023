"""HQDecv2: the complexity it was fitted to, equal output after deployment, and depth without a grid of tokens."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_networks import as_trained, assert_start_depth, exported_depths, relative_depth_error
from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.data import Sample
from fadepth_core.geometry import disparity_to_depth, motion_from_vector
from fadepth_core.losses import LevelWeights, PyramidLoss
from fadepth_core.losses.feature import feature_loss
from fadepth_core.models import HQDecv2, build_model
from fadepth_core.models.complexity import complexity, parameter_count
from fadepth_core.models.hqdec import DECODER_WIDTHS, HEAD_TOKENS
from fadepth_core.models.layers.attention_head import AttentionDisparityHead
from fadepth_core.models.layers.channels import conv_bn_elu
from fadepth_core.models.layers.context import GlobalContext, TokenConfig
from fadepth_core.runtime.checkpoint import Checkpoint, Description
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

SIZE = (96, 160)


def scenes(count: int, height: int, width: int, coarsest_only: bool = False) -> Tensor:
    """Random images [N, 3, H, W] with structure of 2 to 32 pixels, or of at least 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    cells = (32,) if coarsest_only else (32, 16, 8, 4, 2)
    octaves = [torch.randn(count, 3, height // cell, width // cell, generator=generator) for cell in cells]
    mode = "bicubic" if coarsest_only else "bilinear"
    return sum(F.interpolate(octave, size=(height, width), mode=mode) for octave in octaves) / len(cells) ** 0.5


@pytest.fixture(scope="module")
def network(timm) -> HQDecv2:
    """With BatchNorm statistics of `scenes`.

    Random weights amplify differences to the images of the statistics, so the tests use the same images.
    """
    torch.manual_seed(0)
    return as_trained(HQDecv2(), [scenes(4, *SIZE)])


# ---------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("size", "encoder", "decoder"), [((128, 416), 3.006e9, 0.952e9), ((192, 640), 6.932e9, 2.231e9)]
)
def test_multiply_accumulates(network, size, encoder, decoder):
    parts = (network.encoder_modules(), network.decoder_modules())
    found = [complexity(network, (1, 3, *size), part).multiply_accumulates for part in parts]
    assert found == pytest.approx([encoder, decoder], rel=1e-3)


def test_complexity_equals_the_papers(network):
    """24.65 M parameters and 3.90 G multiply-accumulates at 128×416."""
    cost = complexity(network, (1, 3, 128, 416))
    assert cost.parameters == pytest.approx(24.65e6, rel=0.005)
    assert cost.multiply_accumulates == pytest.approx(3.90e9, rel=0.02)


def test_parameters_of_every_block(network):
    """The counts of the fitted configuration (docs/method.md, section 5.9)."""
    decoder = network.decoder

    def counts(blocks):
        return [parameter_count([block]) for block in blocks]

    assert parameter_count(network.encoder_modules()) == 19_847_248
    assert counts(decoder.laterals) == [9921, 34089, 58269, 341461, 769949]
    assert [counts(crossings) for crossings in decoder.crossings] == [
        [],
        [42147],
        [84129, 90461],
        [417645, 430885, 383641],
    ]
    assert counts(decoder.fusions) == [170, 375, 660, 1025]
    assert counts(decoder.ups) == [32141, 70985, 151475, 647639, 1205522]
    assert counts(network.heads) == [4685, 10133, 18133]
    assert parameter_count(network.decoder_modules()) == 4_805_540


# ------------------------------------------------------------------------------------------------- outputs and training


@pytest.mark.parametrize("size", [(128, 416), (32, 32)])
def test_shapes_and_range(network, size):
    with torch.no_grad():
        out = network(scenes(1, *size))

    def pyramid(finest, widths):
        return [(1, width, size[0] >> level, size[1] >> level) for level, width in enumerate(widths, finest)]

    assert [tuple(x.shape) for x in out.disparities] == pyramid(0, (1, 1, 1))
    assert [tuple(x.shape) for x in out.encoder] == pyramid(1, (24, 48, 64, 160, 256))
    assert [tuple(x.shape) for x in out.decoder] == pyramid(0, (24, 24, 48, 64, 160))
    assert all(0 <= x.min() <= x.max() <= 1 for x in out.disparities)


@pytest.mark.parametrize("size", [(64, 208), (33, 47)])
def test_map_sizes_equal_smalldepths(network, size):
    image = scenes(1, 128, 224)[..., : size[0], : size[1]]
    with torch.no_grad():
        out, reference = network(image), build_model("smalldepth").eval()(image)
    for name in ("disparities", "encoder", "decoder"):
        sizes = [x.shape[-2:] for x in getattr(out, name)]
        assert sizes == [x.shape[-2:] for x in getattr(reference, name)], name


def test_other_sizes_are_padded_to_multiples_of_32(network):
    """By repeating the last row and column."""
    image = scenes(1, 64, 224)[..., :208]
    padded = torch.cat([image, image[..., -1:].expand(-1, -1, -1, 16)], dim=-1)
    with torch.no_grad():
        out, whole = network(image), network(padded)
        assert all(torch.equal(a, b[..., : a.shape[-1]]) for a, b in zip(out.decoder, whole.decoder, strict=True))
        encoder = network.encoder(padded)
        decoder = network.decoder(encoder)
        assert all(torch.equal(a, b) for a, b in zip(whole.encoder, encoder, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(whole.decoder, decoder, strict=True))
        assert torch.equal(whole.disparities[0], network.heads[0](decoder[0]))


def test_training_reaches_every_parameter(timm):
    torch.manual_seed(0)
    network = HQDecv2().train()
    sum(x.mean() for x in network(scenes(2, 64, 96)).disparities).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_start_depth(timm):
    torch.manual_seed(0)
    network = build_model("hqdecv2")
    assert_start_depth(network, scenes(2, 64, 96))


def test_encoder_takes_imagenet_weights_from_a_file(timm, tmp_path):
    from safetensors.torch import save_file

    trained = timm.create_model("tf_efficientnetv2_s", pretrained=False)
    save_file(trained.state_dict(), tmp_path / "encoder.safetensors")
    encoder = HQDecv2(weights=tmp_path / "encoder.safetensors").encoder
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in encoder.model.state_dict().items())


def test_encoder_input_is_normalised_as_its_weights_expect(network):
    """timm's weights of EfficientNetV2-S expect mean and standard deviation 0.5. Training and deployment form."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    assert network.encoder.model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    for encoder in (network.encoder, network.fuse().encoder):
        seen = []
        with encoder.model.conv_stem.register_forward_pre_hook(partial(_collect, seen)), torch.no_grad():
            encoder((image - mean) / std)
        assert seen[0].shape == image.shape, "normalised before the zero padding"
        torch.testing.assert_close(seen[0], (image - 0.5) / 0.5, rtol=1e-5, atol=1e-5)


def _collect(seen: list[Tensor], _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0])


def test_missing_weights_and_missing_timm_errors(timm, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"tf_efficientnetv2_s at .*absent\.pth"):
        HQDecv2(weights=tmp_path / "absent.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'fadepth_ros\[train\]'"):
        HQDecv2()


# ---------------------------------------------------------------------------------------------------------- deployment


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_fused_equals_trained(network, dtype, bound):
    image = scenes(4, *SIZE)[:1].to(dtype)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with torch.no_grad():
            expected = network.to(dtype)(image).disparities[0]
            fused = network.fuse()
            assert expected.std() > 0.01, "a constant output would hide errors"
            assert relative_depth_error(expected, fused(image)) <= bound
    finally:
        network.float()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_exported_network_equals_pytorch(network, tmp_path):
    """The ONNX file in OpenVINO, and the checkpoint."""
    description = Description("hqdecv2", "training", SIZE, (0.1, 100.0), PIXEL_MEAN, PIXEL_STD, trained=False)
    fused = network.fuse()
    export_checkpoint(fused, description, tmp_path / "hqdecv2.safetensors")
    rgb = scenes(4, *SIZE)[0].permute(1, 2, 0) * torch.tensor(PIXEL_STD) + torch.tensor(PIXEL_MEAN)
    with torch.no_grad():
        loaded = load_network(Checkpoint(tmp_path / "hqdecv2.safetensors"))
        x = scenes(4, *SIZE)[:1]
        assert relative_depth_error(fused(x), loaded(x)) < 1e-6

    image = (255 * rgb).clamp(0, 255).byte().numpy()
    expected, depth = exported_depths(fused, tmp_path / "hqdecv2.onnx", image)
    assert depth.shape == SIZE
    assert expected.std() > 0.01 * expected.mean(), "a constant output would hide errors"
    assert np.abs(depth / expected - 1).max() < 1e-4


# ------------------------------------------------------------------------------------------------------ grid artifacts

_TOKEN = 32  # pixels


class PatchContext(GlobalContext):
    """The global path of HQDec: patches that do not overlap, and a transposed convolution."""

    def __init__(self, channels: int, tokens: TokenConfig):
        super().__init__(channels, tokens)
        patch = 2**tokens.halvings
        self.sample = nn.Conv2d(channels, channels, patch, patch, groups=channels, bias=False)
        self.paste = nn.ConvTranspose2d(channels, channels, patch, patch, groups=channels, bias=False)
        self.recover = conv_bn_elu(channels, channels)
        # Constant filters: no pattern inside a patch, so that only patch borders are measured.
        nn.init.constant_(self.sample.weight, 1 / patch**2)
        nn.init.constant_(self.paste.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.embed(self.sample(x)) + self.position
        tokens = self.norm(self.block(grid.flatten(2).transpose(1, 2)))
        return x + self.recover(self.paste(self.project(tokens.transpose(1, 2).reshape_as(grid))))


def border_ratios(disparity: Tensor) -> list[float]:
    """Gradient energy of log depth at token borders over that inside tokens, vertical and horizontal."""
    depth = disparity_to_depth(disparity).log()
    ratios = []
    for dim in (2, 3):
        energy = depth.diff(dim=dim).square().movedim(dim, 0).flatten(1).mean(1)
        border = torch.arange(1, len(energy) + 1) % _TOKEN == 0
        ratios.append((energy[border].mean() / energy[~border].mean()).item())
    return ratios


def head_ratios(context: type[GlobalContext], seed: int) -> list[float]:
    """`border_ratios` of the finest head on smooth features. The layers before it, with random weights, would hide its
    tokens."""
    torch.manual_seed(seed)
    head = AttentionDisparityHead(DECODER_WIDTHS[0], HEAD_TOKENS[0])
    head.gate[0] = context(DECODER_WIDTHS[0], HEAD_TOKENS[0])
    with torch.no_grad():
        features = scenes(DECODER_WIDTHS[0], 128, 416, coarsest_only=True)[:, 0]
        return border_ratios(head(features.unsqueeze(0)))


def test_tokens_leave_no_grid():
    for seed in range(3):
        assert max(head_ratios(GlobalContext, seed)) < 2
        assert min(head_ratios(PatchContext, seed)) > 10, "the measure detects the grid of patches"


def test_depth_of_a_smooth_scene_has_no_grid(timm):
    torch.manual_seed(0)
    network = HQDecv2().train()
    with torch.no_grad():
        assert max(border_ratios(network(scenes(2, 128, 416, coarsest_only=True)).disparities[0])) < 1.5


def test_level_lr_trains_with_flow_at_the_features_centres(timm):
    """64x96 halves to 32x48, which is no multiple of 32. HQDecv2's features are centred on odd pixels."""
    torch.manual_seed(0)
    network = HQDecv2().train()
    sample = Sample(
        torch.rand(1, 3, 3, 64, 96),
        torch.tensor([[[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]]]),
        torch.tensor([0.1]),
        ["noise"],
        poses=torch.stack([motion_from_vector(torch.tensor([0.0, 0.05 * i, 0, 0, 0, 0])) for i in range(3)])[None],
    )
    levels = {"cr": LevelWeights(1.0), "lr": LevelWeights(0.5)}

    def feature_terms(backward):
        report = PyramidLoss(network, None, (64, 96), levels)(sample, backward)
        assert torch.isfinite(report.total)
        return [float(report.levels[name].feature) for name in levels]

    at_odd_pixels = feature_terms(torch.Tensor.backward)
    network.feature_offset = 0
    others = feature_terms(lambda loss: None)
    assert all(a != pytest.approx(b, rel=1e-4) for a, b in zip(at_odd_pixels, others, strict=True))


def test_feature_loss_samples_the_flow_at_the_features_centres():
    features = torch.rand(1, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    for offset in (0, 1):
        weight, flow = torch.ones(1, 1, 6, 8), torch.full((1, 2, 6, 8), 100.0)
        flow[..., offset::2, offset::2] = 0
        assert feature_loss(features, features, flow, weight, offset) == pytest.approx(0, abs=1e-6)
        assert feature_loss(features, features, flow, weight, 1 - offset) == pytest.approx(1)
