"""Checkpoints: errors name the file and the reason, and a failed save keeps the old file."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx as onnx_package
import pytest
import torch
from safetensors.numpy import save_file

from fadepth_core.models import SmallDepth
from fadepth_core.runtime.checkpoint import (
    DEFAULT_CHECKPOINT,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    save_checkpoint,
    write_atomically,
)
from fadepth_core.runtime.engine import DepthEngine
from fadepth_core.runtime.export import ensure_onnx, export_checkpoint, golden_frame
from fadepth_core.runtime.network import load_network


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory, checkpoint):
    path = tmp_path_factory.mktemp("exported") / "net.safetensors"
    export_checkpoint(load_network(checkpoint), checkpoint.description, path)
    return path


@pytest.fixture
def exported(exported_once, tmp_path):
    """A copy of the shipped checkpoint that a test may damage, as `export_checkpoint` writes it."""
    for path in (exported_once, exported_once.with_suffix(".onnx")):
        shutil.copy(path, tmp_path)
    return tmp_path / exported_once.name


def test_round_trip_is_exact(exported):
    checkpoint = Checkpoint(exported)
    again = golden_frame(load_network(checkpoint))
    assert np.array_equal(again["image"], checkpoint.golden["image"])
    np.testing.assert_allclose(again["depth"], checkpoint.golden["depth"], rtol=1e-5)
    assert checkpoint.onnx_problem() is None


def test_shipped_checkpoint_is_small_and_has_a_licence(checkpoint):
    assert checkpoint.path.stat().st_size < 5e6
    assert checkpoint.onnx_problem() is None
    assert checkpoint.description.provenance["licence"]


def test_training_form_loads_with_its_etm(tmp_path, checkpoint):
    torch.manual_seed(0)
    trained = SmallDepth(etm="etm#").eval()
    description = replace(checkpoint.description, form="training", options={"etm": "etm#"}, onnx_sha256="")
    weights = {name: value.numpy() for name, value in trained.state_dict().items()}
    save_checkpoint(tmp_path / "run.safetensors", weights, description)
    x = torch.randn(1, 3, 64, 96)
    loaded = load_network(Checkpoint(tmp_path / "run.safetensors"))
    torch.testing.assert_close(loaded(x), trained.fuse()(x))


def test_shipped_checkpoints_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Checkpoint("smalldepth").path == Checkpoint().path == DEFAULT_CHECKPOINT
    assert find_checkpoint("smalldepth_nc").name == "smalldepth_nc.safetensors"
    Path("smalldepth").write_bytes(b"mine")
    assert find_checkpoint("smalldepth") == Path("smalldepth"), "a file in the working directory comes first"
    with pytest.raises(CheckpointError, match=r"^hugedepth: no such file"):
        Checkpoint("hugedepth")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: no such file"):
        Checkpoint(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_truncated_file(exported, keep):
    exported.write_bytes(exported.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not a complete safetensors file"):
        Checkpoint(exported)


def test_pickle_is_never_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"state": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"old\.pth: not a complete safetensors file"):
        Checkpoint(path)


def test_foreign_safetensors(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: a safetensors file, but not one of fadepth's"):
        Checkpoint(tmp_path / "a.safetensors")


def test_a_data_type_that_numpy_lacks(exported):
    """bfloat16, in which most published models are stored."""
    raw = exported.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    first = next(name for name in header if not name.startswith(("__", "golden")))
    header[first]["dtype"] = "BF16"
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    exported.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])
    # In a process of its own: importing onnx registers bfloat16 with numpy.
    program = "import sys; from fadepth_core.runtime.checkpoint import Checkpoint; Checkpoint(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", program, str(exported)], capture_output=True, text=True)
    assert "CheckpointError" in result.stderr
    assert (
        "net.safetensors: tensor 'blocks.1.0.dilated.bias' cannot be read: data type 'bfloat16' not understood"
        in result.stderr
    )


def test_a_directory_and_a_name_too_long(tmp_path):
    with pytest.raises(CheckpointError, match="a directory, not a file"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="too long"):
        Checkpoint("/" + "x" * 5000)


def test_another_normalisation_is_refused(exported):
    rewrite_description(exported, lambda d: d.update(pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1]))
    with pytest.raises(CheckpointError, match="trained with pixel mean"):
        load_network(Checkpoint(exported))


def test_a_cached_graph_is_not_used_for_another_description(exported, tmp_path):
    exported.with_suffix(".onnx").unlink()
    first = ensure_onnx(Checkpoint(exported), tmp_path / "cache")
    rewrite_description(exported, lambda d: d.update(depth_range=[1.0, 10.0]))
    assert ensure_onnx(Checkpoint(exported), tmp_path / "cache") != first


def rewrite_description(path, change):
    def rewrite(header):
        description = json.loads(header["__metadata__"]["fadepth"])
        change(description)
        header["__metadata__"]["fadepth"] = json.dumps(description)

    rewrite_header(path, rewrite)


def rewrite_header(path, change):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=99), "its format is 99, this program reads format 1"),
        (lambda d: d.pop("model"), "model"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.update(form="pickled"), "its form is 'pickled'"),
        (lambda d: d.update(depth_range=[5.0, 1.0]), "5.0 to 1.0 m is empty"),
        (lambda d: d.update(network_size=[128]), r"network_size is \[128\], not 2 numbers"),
        (lambda d: d.update(network_size=["a", "b"]), "not 2 numbers"),
        (lambda d: d.update(network_size=[-128, 416]), "is not two positive multiples of 32"),
        (lambda d: d.update(network_size=[32 * 10**6, 32]), "is not two positive multiples of 32 up to 4096"),
        (lambda d: d.update(network_size=[128.0, 416]), "is not two positive multiples of 32"),
        (lambda d: d.update(network_size=None), "network_size is None, not 2 numbers"),
        (lambda d: d.update(depth_range=[0.1, float("nan")]), "depth_range is .*nan.*, not 2 numbers"),
        (lambda d: d.update(depth_range=[0.1, 10**400]), "depth_range is .*, not 2 numbers"),
        (lambda d: d.update(depth_range=[0.1, 1e300]), "largest is 1e\\+06 m"),
        (lambda d: d.update(pixel_mean=[True, 0, 0]), "pixel_mean is .*, not 3 numbers"),
        (lambda d: d.update(pixel_std=[0, 1, 1]), "pixel_std .* is not positive"),
        (lambda d: d.update(trained="yes"), "trained is 'yes', not true or false"),
        (lambda d: d.update(focal_length=-1), "focal_length is -1"),
        (lambda d: d.update(provenance={"licence": ["MIT"]}), "not texts by key"),
        (lambda d: d.update(provenance=None), "provenance is None, not texts by key"),
        (lambda d: d.update(onnx_sha256="0"), "onnx_sha256 is '0', not a SHA-256 digest"),
        (lambda d: d.update(int8_sha256=None), "int8_sha256 is None"),
        (lambda d: d.update(onnx_weights="../other.safetensors"), "onnx_weights is .*, not the name of a file"),
        (lambda d: d.update(onnx_weights="C:\\\\other"), "onnx_weights is .*, not the name of a file"),
        (lambda d: d.update(model=["smalldepth"]), "unknown model"),
        (lambda d: d.update(options=[]), "options must be an object"),
        (lambda d: d.update(options={"layout": "smalldepth"}), "options.layout is not an option"),
        (lambda d: d.update(options={"min_depth": 1.0}), "options.min_depth is not an option"),
        (lambda d: d.update(options={"residual_drop": 1e999}), r"options.residual_drop must be a number in \[0, 1\)"),
        (lambda d: d.update(options={"etm": "/etc/passwd"}), "options.etm must be one of etm"),
        (lambda d: d.update(options={"etm": {"branch_drop": "x"}}), "options.etm branch_drop must be a number"),
        (lambda d: d.update(options={"etm": {"weights": "x"}}), "options.etm weights is not an option"),
        (lambda d: d.update(model="unet", options={"weights": "x.pth"}), "options.weights is not an option"),
        (lambda d: d.update(model="unet", options={"pretrained": True}), "options.pretrained is not an option"),
        (lambda d: d.update(model="unet", options={"encoder": "hf_hub:a/b"}), "options.encoder must be one of tf_"),
        (lambda d: d.update(model="hqdecv2", options={"encoder": "resnet18"}), "options.encoder must be one of tf_"),
        (lambda d: d.update(model="resnet18", options={"encoder": "resnet18"}), "options.encoder is not an option"),
    ],
)
def test_unusable_description(exported, change, reason):
    rewrite_description(exported, change)
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: its description cannot be used: .*{reason}"):
        Checkpoint(exported)


@pytest.mark.parametrize(
    "text", ["null", "1", '"x"', "true", "[]", "", "{", 100_000 * "[", 100_000 * '{"a":', "1" * 5000]
)
def test_a_description_that_is_no_object(exported, text):
    rewrite_header(exported, lambda header: header["__metadata__"].update(fadepth=text))
    with pytest.raises(
        CheckpointError, match=r"^[^\n]*net\.safetensors: its description cannot be used: fadepth: [^\n]+$"
    ):
        Checkpoint(exported)


def test_a_key_that_is_stated_twice(exported):
    rewrite_header(
        exported,
        lambda header: header["__metadata__"].update(
            fadepth='{"model": "unet", ' + header["__metadata__"]["fadepth"][1:]
        ),
    )
    with pytest.raises(CheckpointError, match="key 'model' occurs twice"):
        Checkpoint(exported)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "its header is longer than the file"),
        (struct.pack("<Q", 5 << 20) + bytes(6 << 20), "its header of 5242880 bytes is longer than 4194304 bytes"),
        (struct.pack("<Q", 2) + b"[]", "must be an object"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "decode"),
        (struct.pack("<Q", 200_000) + 200_000 * b"[", "nested too deeply"),
        (struct.pack("<Q", 20) + b'{"__metadata__": []}', "not one of fadepth's"),
        (struct.pack("<Q", 32) + b'{"__metadata__": {"fadepth": 1}}', "does not hold texts"),
    ],
    ids=range(7),
)
def test_a_header_that_is_none(tmp_path, data, reason):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*net\.safetensors: [^\n]*{reason}[^\n]*$"):
        Checkpoint(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.update(dtype="F7"), "not a complete safetensors file"),
        (lambda e: e.update(shape=[1]), "not a complete safetensors file"),
        (lambda e: e.update(shape=[2**63, 4]), "not a complete safetensors file"),
        (lambda e: e.update(shape=[-1]), "not a complete safetensors file"),
        (lambda e: e.update(data_offsets=[0, 8]), "not a complete safetensors file"),
        (lambda e: e.update(data_offsets=[2**62, 2**62 + 8]), "not a complete safetensors file"),
        (lambda e: e.clear(), "not a complete safetensors file"),
    ],
)
def test_a_tensor_that_does_not_fit_the_file(exported, change, reason):
    rewrite_header(exported, lambda header: change(header["downs.0.0.bias"]))
    with pytest.raises(CheckpointError, match=rf"^[^\n]*net\.safetensors: {reason}[^\n]*$"):
        Checkpoint(exported)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w, g: w.update(extra=np.ones(3)), "the file has the unknown tensor 'extra'"),
        (lambda w, g: w.pop("downs.0.0.bias"), "the file lacks tensor 'downs.0.0.bias'"),
        (lambda w, g: w.update({"downs.0.0.bias": np.ones(3)}), r"'downs.0.0.bias' has the shape \[3\], not \[32\]"),
        (lambda w, g: w["downs.0.0.bias"].fill(np.nan), "'downs.0.0.bias' has values that are not finite"),
        (lambda w, g: w.update({"downs.0.0.bias": np.ones(32, bool)}), "'downs.0.0.bias' is of type bool"),
        (lambda w, g: g.pop("depth"), "without its golden image and depth"),
        (lambda w, g: g.update(image=g["image"][:50]), "golden image of .* is not two positive multiples of 32"),
        (lambda w, g: g.update(image=g["image"].astype(np.float32)), "its golden image is float32"),
        (lambda w, g: g.update(depth=g["depth"][:32]), r"its golden depth is float32 \[32, 96\]"),
        (lambda w, g: g.update(depth=-g["depth"]), "golden depth has values that are not positive"),
    ],
)
def test_tensors_that_no_network_has(exported, change, reason):
    checkpoint = Checkpoint(exported)
    change(checkpoint.weights, checkpoint.golden)
    save_checkpoint(exported, checkpoint.weights, checkpoint.description, checkpoint.golden)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*net\.safetensors: [^\n]*{reason}[^\n]*$"):
        load_network(Checkpoint(exported))


def test_a_pipe_a_sparse_file_and_a_null_character_are_not_read(tmp_path):
    pipe, large = tmp_path / "pipe.safetensors", tmp_path / "large.safetensors"
    os.mkfifo(pipe)
    with open(large, "wb") as file:
        file.truncate(1 << 40)
    for path, reason in ((pipe, "a device or pipe"), (large, "MiB, more than"), ("a\0b", "null")):
        with pytest.raises(CheckpointError, match=reason):
            Checkpoint(path)


def test_the_home_folder_is_found(exported, monkeypatch):
    monkeypatch.setenv("HOME", str(exported.parent))
    assert Checkpoint("~/net.safetensors").path == exported


def test_the_licence_is_printed_in_one_line(checkpoint):
    description = replace(checkpoint.description, provenance={"licence": "MIT\n\x1b[31mand  more\x00"})
    assert description.licence == "MIT [31mand more"


@pytest.mark.parametrize(
    "location", ["../net.safetensors", "/etc/passwd", "other.safetensors", "./net.safetensors", ""]
)
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_a_graph_reads_no_file_but_its_checkpoint(exported, location, place):
    """The digest in the header fits: both files come from the same stranger."""
    onnx = exported.with_suffix(".onnx")
    model = onnx_package.load(onnx, load_external_data=False)
    weights = [tensor for tensor in model.graph.initializer if tensor.external_data]
    if place == "attribute":
        node = onnx_package.helper.make_node("Constant", [], ["spare"], value=weights[0])
        model.graph.node.insert(0, node)
        weights = [model.graph.node[0].attribute[0].t]
    for entry in weights[0].external_data:
        if entry.key == "location":
            entry.value = location
    onnx.write_bytes(model.SerializeToString())
    digest = hashlib.sha256(onnx.read_bytes()).hexdigest()
    rewrite_description(exported, lambda d: d.update(onnx_sha256=digest))
    problem = Checkpoint(exported).onnx_problem()
    assert problem == f"{onnx}: reads weights from '{location}', which is not its checkpoint"


def test_weights_of_another_network(exported):
    rewrite_description(exported, lambda d: d.update(model="smalldepth_k5"))
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not the weights of 'smalldepth_k5': .*tensor"):
        load_network(Checkpoint(exported))


def test_unknown_network(exported):
    rewrite_description(exported, lambda d: d.update(model="hugedepth"))
    with pytest.raises(
        CheckpointError, match=r"net\.safetensors: its description cannot be used: unknown model 'hugedepth'"
    ):
        Checkpoint(exported)


def test_stale_and_damaged_graphs_are_noticed(exported, tmp_path):
    onnx = exported.with_suffix(".onnx")
    good = onnx.read_bytes()
    onnx.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "net.onnx: damaged, or of another checkpoint" in Checkpoint(exported).onnx_problem()
    onnx.unlink()
    checkpoint = Checkpoint(exported)
    assert "net.onnx: no such file" in checkpoint.onnx_problem()
    remade = ensure_onnx(checkpoint, tmp_path / "cache")
    onnx.write_bytes(good)
    assert embedded(remade) == embedded(onnx), "the same graph, with embedded weights"
    onnx.unlink()
    assert ensure_onnx(checkpoint, tmp_path / "cache") == remade


def embedded(path):
    """A graph's nodes and its weights, embedded or external."""
    graph = onnx_package.load(path).graph
    weights = {tensor.name: onnx_package.numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}
    return [node.SerializeToString() for node in graph.node], weights


def test_the_graph_reads_its_weights_from_the_checkpoint(exported):
    """They are stored once. Adding the digest of an int8 graph to the header does not move them."""
    checkpoint = Checkpoint(exported)
    assert checkpoint.onnx_path.stat().st_size < 0.05 * exported.stat().st_size
    graph = onnx_package.load(checkpoint.onnx_path, load_external_data=False).graph
    places = {tensor.name: tensor.external_data for tensor in graph.initializer if tensor.external_data}
    assert {entry.value for place in places.values() for entry in place if entry.key == "location"} == {
        "net.safetensors"
    }
    large = [name for name, value in checkpoint.weights.items() if value.size >= 64]
    assert sorted(places) == sorted(f"network.{name}.half" for name in large)
    before = embedded(checkpoint.onnx_path)
    description = replace(checkpoint.description, int8_sha256="f" * 64)
    save_checkpoint(exported, checkpoint.weights, description, checkpoint.golden)
    assert embedded(checkpoint.onnx_path) == before


def test_the_graph_of_a_renamed_checkpoint_is_exported_again(exported):
    renamed = exported.with_name("robot.safetensors")
    exported.rename(renamed)
    exported.with_suffix(".onnx").rename(renamed.with_suffix(".onnx"))
    expected = "reads its weights from 'net.safetensors', but the checkpoint is now called 'robot.safetensors'"
    assert expected in Checkpoint(renamed).onnx_problem()
    engine = DepthEngine.load(renamed, backend="openvino")
    assert engine.backend_name == "openvino", "the graph is exported to the user's cache"


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")

    def disk_full(part):
        with open(part, "wb") as file:
            file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, disk_full)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.bin"], "nothing is left behind"
