"""The pose network's file: saving and loading, and errors that name the file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fadepth_core.models.posenet import build_pose_net
from fadepth_core.runtime.checkpoint import DEFAULT_CHECKPOINT, CheckpointError
from fadepth_core.training.pose_checkpoint import load_pose_net, save_pose_net


@pytest.mark.parametrize("focal_length", [None, 120.0])
def test_a_loaded_pose_net_equals_the_saved_one(tmp_path, focal_length):
    torch.manual_seed(0)
    pose_net = build_pose_net("small").to(memory_format=torch.channels_last)
    pair = torch.randn(2, 6, 64, 96)
    pose_net(pair)  # moves the BatchNorm statistics
    save_pose_net(tmp_path / "pose.safetensors", pose_net, "small", (64, 96), focal_length)
    assert pose_net.training
    loaded, size, focal = load_pose_net(tmp_path / "pose.safetensors")
    assert (size, focal, loaded.training) == ((64, 96), focal_length, False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pair), pose_net.eval()(pair))
    assert [path.name for path in tmp_path.iterdir()] == ["pose.safetensors"]


def write(path, **changes):
    header = {"format": 1, "network": "small", "size": [64, 96], "focal_length": None, **changes}
    save_file(build_pose_net("small").state_dict(), path, {"fadepth_pose": json.dumps(header)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 a torch file"), "not a complete safetensors file"),
        (lambda path: path.write_bytes(DEFAULT_CHECKPOINT.read_bytes()), "not a pose network of fadepth"),
        (lambda path: write(path, format=2), "its format is 2, this program reads format 1"),
        (lambda path: write(path, network="resnet"), "unknown pose network 'resnet'; known: fbnetv3_b, small"),
        (lambda path: write(path, size=[64]), r"its size \[64\] is not two positive multiples of 32"),
        (lambda path: write(path, focal_length=-1), "its focal_length is -1, not a positive number"),
        (
            lambda path: save_file(
                {"x": torch.ones(1)},
                path,
                {"fadepth_pose": '{"format": 1, "network": "small", "size": [64, 96], "focal_length": null}'},
            ),
            "its weights do not fit pose network 'small'",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, spoil, message):
    path = tmp_path / "pose.safetensors"
    spoil(path)
    with pytest.raises(CheckpointError, match=rf"pose\.safetensors: .*{message}"):
        load_pose_net(path)
