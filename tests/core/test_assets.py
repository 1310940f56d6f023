"""Scenes of 3D models: geometry and textures as in the files, exact depth and motion, and helpful errors."""

from __future__ import annotations

import logging
import sys

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.data import DataError, collate
from fadepth_core.data.registry import build_dataset
from fadepth_core.geometry import relative_motion, reproject, sample
from fadepth_core.rendering.occlusion import ambient_occlusion
from fadepth_core.rendering.raster import SKY_DEPTH
from fadepth_core.synthetic.assets.dataset import AssetsDataset
from fadepth_core.synthetic.assets.meshes import bounds, read_model
from fadepth_core.synthetic.assets.models import STREET, load_models
from fadepth_core.synthetic.assets.places import Places
from fadepth_core.synthetic.assets.sdf import Library, pose_matrix, read_sdf
from fadepth_core.synthetic.assets.stage import Atlas, build_stage
from fadepth_core.synthetic.dataset import Scene, Track, daylight

trimesh = pytest.importorskip("trimesh", reason="needs the extra 'assets'")
pytest.importorskip("collada", reason="needs the extra 'assets'")

SIZE = (48, 64)
K = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])

#: A square of 2 x 2 m in the plane x = 0 that faces -x, z up; its texture is upright when seen from there.
PANEL = """mtllib panel.mtl
v 0 1 -1
v 0 -1 -1
v 0 -1 1
v 0 1 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl paper
f 1/1 2/2 3/3 4/4
"""


def write_box(folder, name, extents=(1, 1, 1)):
    """Write a model with an SDF file whose mesh is a box."""
    (folder / name / "meshes").mkdir(parents=True)
    trimesh.creation.box(extents).export(folder / name / "meshes" / "box.obj")
    visual = f"<geometry><mesh><uri>model://{name}/meshes/box.obj</uri></mesh></geometry>"
    write_model(folder, name, f"<link name='l'><visual name='v'>{visual}</visual></link>")


def write_model(folder, name, content):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "model.sdf").write_text(f"<sdf version='1.6'><model name='{name}'>{content}</model></sdf>")


def write_world(folder, content, name="tiny"):
    path = folder / f"{name}.world"
    path.write_text(f"<sdf version='1.6'><world name='w'>{content}</world></sdf>")
    return path


def include(name, pose):
    return f"<include><uri>model://{name}</uri><pose>{pose}</pose></include>"


def box_model(name, size, pose):
    """SDF of a model that is a box."""
    visual = f"<visual name='v'><geometry><box><size>{size}</size></box></geometry></visual>"
    return f"<model name='{name}'><pose>{pose}</pose><link name='l'>{visual}</link></model>"


def hall(*more):
    """SDF of a room of 8 x 6 m, 3 m high, without ceiling."""
    return (
        box_model("floor", "8 6 0.1", "0 0 -0.05 0 0 0")
        + box_model("wall_a", "8 0.1 3", "0 3 1.5 0 0 0")
        + box_model("wall_b", "8 0.1 3", "0 -3 1.5 0 0 0")
        + box_model("wall_c", "0.1 6 3", "4 0 1.5 0 0 0")
        + box_model("wall_d", "0.1 6 3", "-4 0 1.5 0 0 0")
        + "".join(more)
    )


def render_parts(parts, texture_side=256):
    """Linear image and depth of parts, seen along Gazebo's x axis by a camera at the origin."""
    atlas = Atlas(texture_side)
    stage = build_stage(parts, atlas)
    light = daylight(np.random.default_rng(0), atlas.textures)
    light = light._replace(
        lamp_rgb=np.zeros(3), up_rgb=np.ones(3), down_rgb=np.ones(3), shadow_map=np.zeros((1, 1), np.float32), haze=0.0
    )
    at_rest = np.zeros(len(stage.geometry.vertices), int)
    scene = Scene(stage.geometry, at_rest, np.zeros((1, 3)), Track(), stage.materials, light, atlas.finish())
    return scene.render_at(0.0, K, np.eye(4), SIZE)


def textured_panel(folder, picture, alpha=""):
    """The parts of `PANEL` with the texture `picture`, 2 m ahead."""
    (folder / "panel.obj").write_text(PANEL)
    (folder / "panel.mtl").write_text(f"newmtl paper\nKd 1 1 1\nmap_Kd paper.png\n{alpha}")
    cv2.imwrite(str(folder / "paper.png"), picture)
    return [part.moved(pose_matrix("2 0 0 0 0 0")) for part in read_model(folder / "panel.obj")]


def test_depth_matches_the_pose_and_scale_in_the_world(tmp_path):
    """A cube of 1 m, scaled to a length of 4 m, its centre 7 m ahead and 1 m to the left: its front is 5 m away."""
    write_box(tmp_path, "block")
    scaled = "<geometry><mesh><uri>model://block/meshes/box.obj</uri><scale>4 1 1</scale></mesh></geometry>"
    content = f"<link name='l'><visual name='v'>{scaled}</visual></link>"
    world = write_world(tmp_path, f"<model name='m'><pose>7 1 0 0 0 0</pose>{content}</model>")
    _, depth = render_parts(read_sdf(world, Library(tmp_path)))
    face = np.isclose(depth, 5.0, rtol=1e-5)
    assert np.flatnonzero(face.any(0)).tolist() == list(range(17, 27))  # 31.5 - 50·y/5 for y = 0.5 .. 1.5
    assert np.flatnonzero(face.any(1)).tolist() == list(range(19, 29))  # 23.5 ± 50·0.5/5
    assert depth[0, 0] == SKY_DEPTH


def test_poses_of_include_model_link_and_visual_are_composed(tmp_path):
    write_box(tmp_path, "bar", (3, 1, 1))
    mesh = "<geometry><mesh><uri>model://bar/meshes/box.obj</uri></mesh></geometry>"
    link = f"<link name='l'><pose>1 0 0 0 0 0</pose><visual name='v'><pose>0 0 2 0 0 0</pose>{mesh}</visual></link>"
    write_model(tmp_path, "bar", f"<pose>50 0 0 0 0 0</pose>{link}")  # replaced by the pose of the include
    turned = include("bar", f"10 0 0 0 0 {np.pi / 2}")
    nested = f"<model name='outer'><pose>0 0 5 0 0 0</pose>{turned}</model>"
    (part,) = read_sdf(write_world(tmp_path, nested), Library(tmp_path))
    np.testing.assert_allclose(bounds([part]), [[9.5, -0.5, 6.5], [10.5, 2.5, 7.5]], atol=1e-5)
    (own,) = read_sdf(write_world(tmp_path, "<include><uri>model://bar</uri></include>"), Library(tmp_path))
    np.testing.assert_allclose(bounds([own]).mean(0), [51, 0, 2], atol=1e-5)
    assert "bar" in part.name


@pytest.mark.parametrize("texture_side", [256, 1024])
def test_image_textures_are_upright_and_not_mirrored(tmp_path, texture_side):
    picture = np.zeros((1024, 1024, 3), np.uint8)
    picture[:512, :512], picture[:512, 512:] = (0, 0, 255), (0, 255, 0)  # OpenCV's BGR: red, green above; blue below
    picture[512:, :512] = (255, 0, 0)
    seen, depth = render_parts(textured_panel(tmp_path, picture), texture_side)
    assert np.isclose(depth[23, 31], 2.0, rtol=1e-5)
    corners = [seen[12, 20], seen[12, 43], seen[36, 20], seen[36, 43]]
    assert [int(c.argmax()) for c in corners[:3]] == [0, 1, 2]
    assert all(c.max() > 0.5 and np.sort(c)[1] < 0.02 for c in corners[:3])
    assert corners[3].max() < 0.02


def test_alpha_is_coverage_only_if_the_model_declares_it(tmp_path):
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[:, 32:, 3] = 0
    _, whole = render_parts(textured_panel(tmp_path, picture))
    _, half = render_parts(textured_panel(tmp_path, picture, "map_d paper.png\n"))
    assert np.isclose(whole[23, [20, 43]], 2.0, rtol=1e-5).all()
    assert np.isclose(half[23, 20], 2.0, rtol=1e-5)
    assert half[23, 43] == SKY_DEPTH


def test_collada_units_are_converted_to_metres(tmp_path):
    text = trimesh.exchange.dae.export_collada(trimesh.creation.box((100, 200, 300))).decode()
    (tmp_path / "box.dae").write_text(text.replace("<asset>", '<asset><unit name="cm" meter="0.01"/>', 1))
    np.testing.assert_allclose(np.ptp(bounds(read_model(tmp_path / "box.dae")), axis=0), [1, 2, 3], rtol=1e-5)


def test_missing_models_and_meshes_are_left_out_with_a_warning(tmp_path, caplog):
    write_box(tmp_path, "block")
    write_model(tmp_path, "broken", "<link name='l'><visual name='v'><geometry><mesh><uri>model://broken/no.dae</uri>"
                "</mesh></geometry></visual></link>")  # fmt: skip
    world = write_world(
        tmp_path, include("block", "3 0 0 0 0 0") + include("broken", "0 0 0 0 0 0") + include("gone", "")
    )
    with caplog.at_level(logging.WARNING):
        parts = read_sdf(world, Library(tmp_path))
    assert len(parts) == 1
    assert "no mesh 'model://broken/no.dae'" in caplog.text
    assert "no model 'model://gone'" in caplog.text
    (tmp_path / "block" / "meshes" / "box.obj").unlink()
    with pytest.raises(DataError, match=r"tiny\.world: nothing in it could be loaded"):
        read_sdf(world, Library(tmp_path))


def test_cameras_are_on_free_floor(tmp_path):
    write_box(tmp_path, "block", (2, 2, 1))  # closed: its inside is not free floor
    world = write_world(tmp_path, hall(include("block", "0 0 0.5 0 0 0")))
    stage = build_stage(read_sdf(world, Library(tmp_path)), Atlas(256))
    places, rng = Places(stage.geometry), np.random.default_rng(0)
    assert places.roofed < 0.1
    assert places.wall_height == pytest.approx(3.0, abs=0.05)
    for _ in range(50):
        right, down, ahead = places.draw(rng, 0.5)
        assert down == -0.5
        assert abs(ahead) < 4 - 0.3
        assert abs(right) < 3 - 0.3
        assert max(abs(ahead), abs(right)) > 1.3
    assert places.draw(rng, 1.6) is not None


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_box(folder, "chair", (0.5, 0.5, 0.9))
    write_box(folder, "table", (1.5, 0.8, 0.7))
    write_world(folder, hall(include("table", "1 1 0.35 0 0 0.4"), include("chair", "-1 0 0.45 0 0 1")))
    return folder


def test_world_samples_are_complete_and_reproducible(world_folder):
    def load(seed=3, **options):
        return build_dataset("assets", SIZE, root=world_folder, world="tiny", seed=seed, retexture=1.0, **options)[1]

    item, again, other = load(), load(), load(4)
    assert item.frames.shape == (3, 3, *SIZE)
    assert item.frames.dtype == item.depth.dtype == torch.float32
    assert torch.equal(item.frames, again.frames)
    assert torch.equal(item.depth, again.depth)
    assert not torch.equal(item.frames, other.frames)
    assert 0.25 < item.depth.min() < item.depth.max() < 11  # walls and a ceiling around
    torch.testing.assert_close(item.poses[1], torch.eye(4))
    travelled = float(item.poses[2, :3, 3].norm())
    assert travelled == pytest.approx(float(item.speed * item.interval), rel=1e-3)
    static = load(static=True)
    assert torch.equal(static.depth, item.depth)
    assert float(static.speed) == 0
    torch.testing.assert_close(static.poses, torch.eye(4).expand(3, 4, 4))


def test_true_depth_and_motion_explain_the_other_frames(world_folder):
    dataset = AssetsDataset(world_folder, "tiny", size=(96, 128), seed=2, retexture=1.0, stride=2)
    item = collate([dataset[i] for i in range(3)])
    middle, other = item.frames[:, 1], item.frames[:, 2]
    motion = relative_motion(item.poses[:, 1], item.poses[:, 2])
    seen = reproject(item.depth[:, None], motion, item.intrinsics)
    used = (seen.valid & (seen.flow.norm(dim=1, keepdim=True) > 3)).expand_as(middle)
    warped, plain = (sample(other, seen.pixels) - middle)[used].abs(), (other - middle)[used].abs()
    assert warped.median() < 0.6 * plain.median()  # the rest is noise; few pixels are occluded in the other view


def test_scatter_places_furniture_in_a_world(world_folder):
    bare, furnished = (
        AssetsDataset(world_folder, "tiny", size=SIZE, static=True, seed=5, retexture=0.0, scatter=n) for n in (0, 8)
    )
    rng = np.random.default_rng(0)
    count = len(bare.draw(rng)[0].geometry.faces)
    counts = (len(furnished.draw(rng)[0].geometry.faces) for _ in range(8))
    more = next((found for found in counts if found > count), count)
    assert more > count, "the number of models is random, but not 0 in all of eight scenes"
    assert (more - count) % 12 == 0, "each model is a box"


def test_models_get_roles_by_name_and_size(tmp_path, caplog):
    write_box(tmp_path, "house_7", (8, 10, 6))
    write_box(tmp_path, "toy_house", (0.2, 0.3, 0.2))
    write_box(tmp_path, "mystery", (1, 1, 1))
    trimesh.creation.box((1.7, 1.5, 4.2)).export(tmp_path / "red_car.obj")  # without an SDF file: y is up, z its length
    with caplog.at_level(logging.WARNING):
        models = load_models(Library(tmp_path), STREET, Atlas(256))
    assert {role: [model.name for model in known] for role, known in models.items() if known} == {
        "building": ["house_7"],
        "vehicle": ["red_car"],
    }
    assert "toy_house" in caplog.text
    np.testing.assert_allclose(models["vehicle"][0].extent, [1.7, 1.5, 4.2], rtol=1e-5)
    np.testing.assert_allclose(models["building"][0].extent, [10, 6, 8], rtol=1e-5)
    lowest = models["vehicle"][0].stage.geometry.vertices[:, 1].max()
    assert lowest == pytest.approx(0, abs=1e-5), "it is on the ground; y is down"


@pytest.mark.parametrize(("kind", "names"), [("street", ("house_1", "car_1", "tree_1")), ("room", ("sofa", "table"))])
def test_streets_and_rooms_from_a_folder_of_models(tmp_path, kind, names):
    sizes = {"house_1": (8, 9, 6), "car_1": (4.2, 1.7, 1.5), "tree_1": (3, 3, 6), "sofa": (2, 0.9, 0.8)}
    for name in names:
        write_box(tmp_path, name, sizes.get(name, (1, 1, 0.7)))
    dataset = AssetsDataset(tmp_path, kind=kind, size=SIZE, length=2, seed=1, sky=False)
    samples = list(dataset)
    assert len(samples) == 2
    for item in samples:
        assert item.frames.shape == (3, 3, *SIZE)
        assert item.depth.max() < SKY_DEPTH
        assert float(item.speed) > 0
    with pytest.raises(IndexError):
        dataset[2]


def test_errors_name_an_unusable_folder_or_world(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path / 'none'}: no such folder"):
        AssetsDataset(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{tmp_path / 'file'}: not a folder"):
        AssetsDataset(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        AssetsDataset(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match=f"{tmp_path}: of its 0 models"):
        AssetsDataset(tmp_path, size=SIZE)
    with pytest.raises(DataError, match=f"{tmp_path}: no world 'moon'; there are none"):
        AssetsDataset(tmp_path, "moon")
    with pytest.raises(DataError, match=r"tiny\.world: no free floor at height 0"):
        AssetsDataset(tmp_path, write_world(tmp_path, box_model("pillar", "0.2 0.2 3", "0 0 2 0 0 0")).name)


def test_models_are_searched_by_the_rules_of_all_folders(tmp_path):
    write_box(tmp_path / "installed", "house_1")
    write_box(tmp_path, ".git")
    (tmp_path / "installed" / "house_1" / "._model.sdf").write_bytes(b"\0\5\x16\7")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "installed" / "house_1")
    (tmp_path / "installed" / "back").symlink_to(tmp_path)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "car.obj").write_text("")
    library = Library(tmp_path)
    assert set(library.folders) == {"house_1"}
    assert library.model_file(library.folders["house_1"]).name == "model.sdf"
    assert not library.files
    assert set(Library(tmp_path / "models").folders) == {"linked"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "moon"}, "kind must be"),
        ({"kind": "world"}, "kind must be"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"heights": (2, 1)}, "heights must be two numbers"),
        ({"texture_side": 300}, "texture_side must be 256 times 1, 2 or 4, got 300"),
        ({"roles": {"boat": "x"}}, "no role boat; there are"),
        ({"roles": {"tree": "("}}, "names of role tree"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        AssetsDataset(tmp_path, **options)


@pytest.mark.parametrize(("module", "what"), [("trimesh", "trimesh"), ("collada", "pycollada")])
def test_errors_name_the_missing_extra(tmp_path, monkeypatch, module, what):
    (tmp_path / "house.dae").write_bytes(trimesh.exchange.dae.export_collada(trimesh.creation.box((9, 9, 9))))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{what}: pip install 'fadepth_ros\[assets\]'"):
        AssetsDataset(tmp_path, kind="street")


def test_ambient_occlusion_darkens_corners_but_not_open_walls():
    """A floor 1 m below the camera meets a wall 4 m ahead; the wall ends 1 m above the camera, below the sky."""
    k = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    down = (np.arange(48) - 23.5) / 50
    rows = np.where(down > 0.25, 1 / np.maximum(down, 0.01), np.where(down < -0.25, SKY_DEPTH, 4.0))
    open_share = ambient_occlusion(np.tile(rows[:, None], (1, 64)).astype(np.float32), k, 0.5)
    assert open_share[:8].min() == 1
    assert open_share[20:26, 10:50].mean() > 0.97
    assert open_share[34:38, 10:50].mean() < 0.85
