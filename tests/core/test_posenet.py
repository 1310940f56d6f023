"""Pose networks: small motions from untrained networks, ImageNet weights, and errors that name what is missing."""

from __future__ import annotations

import sys

import pytest
import torch

from fadepth_core.common.color import PIXEL_MEAN, PIXEL_STD
from fadepth_core.models.complexity import parameter_count
from fadepth_core.models.layers.backbone import timm_backbone
from fadepth_core.models.posenet import PoseNet, SmallPoseNet, build_pose_net


def assert_predicts_small_motions(network):
    torch.manual_seed(0)
    pairs = torch.randn(2, 6, 64, 96)
    vectors = network.train()(pairs)
    assert vectors.shape == (2, 6)
    assert vectors.abs().max() < 0.05, "reprojected frames overlap at the start of training"
    assert vectors[0].ne(vectors[1]).all()
    vectors.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_small_network():
    network = build_pose_net("small")
    assert isinstance(network, SmallPoseNet)
    assert parameter_count([network]) == pytest.approx(0.76e6, rel=0.01)
    assert_predicts_small_motions(network)


def test_fbnet(timm):
    network = build_pose_net("fbnetv3_b")
    assert parameter_count([network.encoder]) == pytest.approx(6.6e6, rel=0.01)
    assert network.head.in_features == 1984
    assert_predicts_small_motions(network)


def test_fbnet_takes_imagenet_weights_from_a_file(timm, tmp_path):
    """The first filters are repeated for both frames and halved, so that the response keeps its size."""
    from safetensors.torch import save_file

    trained = timm.create_model("fbnetv3_b", pretrained=False)
    save_file(trained.state_dict(), tmp_path / "fbnet.safetensors")
    network = PoseNet(weights=tmp_path / "fbnet.safetensors")
    stem, both = trained.conv_stem.weight, network.encoder.conv_stem.weight
    torch.testing.assert_close(both, torch.cat([stem, stem], dim=1) / 2)
    named = dict(network.encoder.named_parameters())
    for name, value in trained.named_parameters():
        if name in named and name != "conv_stem.weight":
            assert torch.equal(named[name], value), name


def test_both_frames_are_normalised_as_the_backbone_expects(timm):
    """EfficientNet-Lite expects mean 127/255 and std 128/255; fbnetv3_b expects ImageNet's, as the frames have."""
    torch.manual_seed(0)
    network = timm_backbone("tf_efficientnet_lite0", in_chans=6, num_classes=0).eval()
    pair = torch.rand(1, 6, 64, 96)
    mean, std = (torch.tensor(2 * values).view(6, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    cfg = network.model.pretrained_cfg
    expected_mean, expected_std = (torch.tensor(2 * tuple(cfg[key])).view(6, 1, 1) for key in ("mean", "std"))
    seen = []
    network.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network((pair - mean) / std)
    torch.testing.assert_close(seen[0], (pair - expected_mean) / expected_std, rtol=1e-5, atol=1e-5)
    assert type(PoseNet().encoder).__module__.startswith("timm"), "no RenormalisedBackbone"


def test_missing_timm_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'fadepth_ros\[train\]'"):
        build_pose_net("fbnetv3_b")
    build_pose_net("small")  # does not need timm


def test_missing_weights_error_names_the_file(timm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fbnetv3_b at .*absent\.pth"):
        PoseNet(weights=tmp_path / "absent.pth")


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown pose network 'large'; known: fbnetv3_b, small"):
        build_pose_net("large")
