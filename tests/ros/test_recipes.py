"""The files of config/recipes: each parameter exists, and what the node publishes with them is what the consumers need.

The consumers are C++ packages; `consumers.py` reads messages by their contracts. The depth of the network is replaced by that
of a known scene: a level camera above a floor, a box 2 m ahead and a wall behind it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from rclpy.qos import QoSCompatibility, QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy, qos_check_compatible
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

import consumers
from cards import image_message, info_message, noise
from fadepth_core.common.errors import DataError
from fadepth_core.runtime.engine import DepthResult
from fadepth_ros.nav2_parameters import add_layer, add_layer_to_file
from fadepth_ros.parameters import SPECS, Parameters
from fadepth_ros.pipeline import DEPTH, INFO, POINTS
from fakes import SECOND, FakeEngine, RecordedOutputs, make_pipeline, settings

RECIPES = Path(__file__).resolve().parents[2] / "config" / "recipes"
NAMES = ("nav2_voxel_layer", "nav2_stvl", "laserscan", "rtabmap", "image_pipeline")
#: Parameters that each node of ROS has.
ROS_OWN = ("use_sim_time", "start_type_description_service")
#: Size and focal length of the camera, pixels, and its height above the floor, metres.
SIZE, FOCAL, HEIGHT = (240, 320), 280.0, 0.45
#: Front of the box, its half width, its height; distance of the wall. Metres.
BOX, HALF, TOP, WALL = 2.0, 0.25, 0.8, 6.0


class Scene(FakeEngine):
    """Answers with the depth of the scene."""

    follows_camera = True  # each request has intrinsics
    box, wall = True, WALL

    def _run(self, request):
        k = self.framing.output_intrinsics(request.intrinsics)
        h, w = self.framing.output_size
        x, y = (np.arange(w) - k[0, 2]) / k[0, 0], ((np.arange(h) - k[1, 2]) / k[1, 1])[:, None]
        depth = np.full((h, w), self.wall)
        if self.box:
            depth[(np.abs(x * BOX) <= HALF) & (y * BOX >= HEIGHT - TOP)] = BOX
        with np.errstate(divide="ignore"):
            depth = np.minimum(depth, np.where(y > 0, HEIGHT / y, np.inf))
        depth = depth.astype(np.float32)
        points = np.stack([x * depth, y * depth, depth], -1).astype(np.float32) if request.points else None
        return DepthResult(depth, points, k).limited(request.limits)


class EmptyScene(Scene):
    box = False


class OpenScene(EmptyScene):
    wall = 50.0


def recipe(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


def node_parameters(name):
    """The recipe's parameters of the depth node, read by ROS, for a node in any namespace."""
    node = rclpy.create_node(
        "depth",
        cli_args=["--ros-args", "-r", "__ns:=/robot/front", "--params-file", str(RECIPES / f"{name}.yaml")],
        automatically_declare_parameters_from_overrides=True,
    )
    given = {key: parameter.value for key, parameter in node.get_parameters_by_prefix("").items()}
    node.destroy_node()
    return {key: value for key, value in given.items() if key not in ROS_OWN}


def published(name, outputs, scene=Scene):
    """What the node publishes with a recipe for one image, by output; the image itself as "image"."""
    recorded = RecordedOutputs(*outputs)
    pipeline = make_pipeline(recorded, scene, camera_info=False, **node_parameters(name))
    pipeline.offer_camera_info(serialize_message(info_message(SIZE, focal=FOCAL)))
    image = image_message(noise(SIZE), "rgb8", 3 * SECOND)
    pipeline.offer_image(serialize_message(image))
    kinds = {DEPTH: Image, INFO: CameraInfo, POINTS: PointCloud2}
    return {output: deserialize_message(recorded.last[output], kinds[output]) for output in outputs} | {"image": image}


def layer_of(name):
    return recipe(name)["local_costmap"]["local_costmap"]["ros__parameters"]["depth_layer"]


@pytest.mark.parametrize("name", NAMES)
def test_the_node_accepts_the_parameters_of_a_recipe(name):
    """A name that the node does not have would change nothing."""
    given = node_parameters(name)
    assert given
    assert set(given) <= {spec.name for spec in SPECS}
    node = rclpy.create_node("depth", cli_args=["--ros-args", "--params-file", str(RECIPES / f"{name}.yaml")])
    settings = Parameters(node, lambda: False, lambda _: None, lambda _: None).settings
    node.destroy_node()
    assert settings.depth_encoding == given.get("depth_encoding", "32FC1")


@pytest.mark.parametrize(
    ("name", "layer_names", "source_names"),
    [
        ("nav2_voxel_layer", consumers.VOXEL_LAYER, consumers.VOXEL_SOURCE),
        ("nav2_stvl", consumers.STVL, consumers.STVL_SOURCE),
    ],
)
def test_nav2_has_the_parameters_of_the_layers(name, layer_names, source_names):
    layer = layer_of(name)
    sources = layer["observation_sources"].split()
    for key, value in layer.items():
        names = layer_names if key not in sources else source_names
        for inner, kind in value.items() if key in sources else [(key, value)]:
            kind = kind if key in sources else value
            assert type(kind) is names[inner], f"{key}: {inner}"
    assert {layer[source]["topic"] for source in sources} == {f"/{POINTS}"}


@pytest.mark.parametrize("name", ["nav2_voxel_layer", "nav2_stvl"])
def test_the_costmap_marks_the_box_and_not_the_floor(name):
    cloud = published(name, [POINTS])[POINTS]
    marked = consumers.CostmapLayer(layer_of(name), HEIGHT).marked(consumers.xyz(cloud))
    np.testing.assert_allclose(marked[:, 0], BOX, atol=1e-3)
    assert marked[:, 1].min() == pytest.approx(-HALF, abs=0.03)
    assert marked[:, 1].max() == pytest.approx(HALF, abs=0.03)
    cells = {(round(y / 0.05), round(z / 0.1)) for _, y, z in marked}
    assert len(cells) >= 8 * 5, "without gaps: a cell of 0.05 m has points"


def test_the_costmap_clears_the_box_when_it_is_gone():
    layer = consumers.CostmapLayer(layer_of("nav2_voxel_layer"), HEIGHT)
    marked = layer.marked(consumers.xyz(published("nav2_voxel_layer", [POINTS])[POINTS]))
    empty = consumers.xyz(published("nav2_voxel_layer", [POINTS], EmptyScene)[POINTS])
    assert len(layer.marked(empty)) == 0
    low = marked[marked[:, 2] < 0.3]
    assert all(layer.clears(empty, place, 0.1) for place in np.vstack([low[::20], marked[::50]]))


def test_the_frustum_of_stvl_is_inside_the_view_of_a_usual_camera():
    """A wider one would clear obstacles that the camera does not see."""
    clear = layer_of("nav2_stvl")["depth_clear"]
    assert clear["horizontal_fov_angle"] <= 2 * np.arctan(SIZE[1] / (2 * FOCAL))
    assert clear["vertical_fov_angle"] <= 2 * np.arctan(SIZE[0] / (2 * FOCAL))
    assert clear["max_z"] <= recipe("nav2_stvl")["/**/depth"]["ros__parameters"]["points"]["max_z"]


def test_the_laser_scan_has_the_box_and_no_floor():
    parameters = recipe("laserscan")["/**/depthimage_to_laserscan"]["ros__parameters"]
    assert {key: type(value) for key, value in parameters.items()} == consumers.LASERSCAN
    found = published("laserscan", [DEPTH, INFO])
    assert (found[DEPTH].header.stamp, found[INFO].header.frame_id) == (
        found["image"].header.stamp,
        found["image"].header.frame_id,
    )
    ranges = consumers.laser_scan(found[DEPTH], found[INFO], parameters)
    p = np.array(found[INFO].p).reshape(3, 4)
    across = (np.arange(found[DEPTH].width) - p[0, 2]) / p[0, 0]
    on_box = np.abs(across * BOX) < HALF
    np.testing.assert_allclose(ranges[on_box], (BOX * np.hypot(1, across))[on_box], rtol=1e-3)
    np.testing.assert_allclose(ranges[~on_box], (WALL * np.hypot(1, across))[~on_box], rtol=1e-3)


def test_far_space_is_infinite_in_the_laser_scan():
    """So that a costmap with inf_is_valid clears; NaN would leave what was marked before."""
    parameters = recipe("laserscan")["/**/depthimage_to_laserscan"]["ros__parameters"]
    found = published("laserscan", [DEPTH, INFO], OpenScene)
    assert np.isposinf(consumers.laser_scan(found[DEPTH], found[INFO], parameters)).all()


def test_rtabmap_takes_depth_as_that_of_the_camera():
    found = published("rtabmap", [DEPTH])
    assert consumers.rtabmap_refusal(found["image"], found[DEPTH]) is None
    assert (found[DEPTH].height, found[DEPTH].width) == SIZE, "depth of the camera's camera_info"
    millimetres = np.frombuffer(found[DEPTH].data, np.uint16)
    assert set(np.unique(millimetres)) >= {round(1000 * BOX), round(1000 * WALL)}


def test_the_default_size_would_not_do_for_rtabmap():
    """What the recipe is for."""
    found = published("laserscan", [DEPTH])
    assert "multiple" in consumers.rtabmap_refusal(found["image"], found[DEPTH])


def test_depth_image_proc_computes_the_nodes_cloud():
    found = published("image_pipeline", [DEPTH, INFO, POINTS])
    theirs = consumers.points_of_depth_image_proc(found[DEPTH], found[INFO])
    np.testing.assert_allclose(consumers.xyz(found[POINTS]), theirs.reshape(-1, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("consumer", consumers.SUBSCRIPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_each_consumer_hears_the_node(name, consumer):
    """A reliable subscription does not hear a best-effort publisher."""
    for output in (DEPTH, INFO, POINTS):
        qos = settings(**node_parameters(name)).qos[output]
        publisher = QoSProfile(
            depth=qos.depth,
            reliability=QoSReliabilityPolicy[qos.reliability.upper()],
            durability=QoSDurabilityPolicy[qos.durability.upper()],
        )
        compatible, reason = qos_check_compatible(publisher, consumers.SUBSCRIPTIONS[consumer])
        assert compatible != QoSCompatibility.ERROR, reason


NAV2 = {
    "amcl": {"ros__parameters": {"x": 1}},
    "local_costmap": {
        "local_costmap": {
            "ros__parameters": {"width": 3, "plugins": ["voxel_layer", "inflation_layer"], "voxel_layer": 1}
        }
    },
}


def test_a_layer_is_added_before_the_inflation_and_the_others_stay():
    merged = add_layer(NAV2, recipe("nav2_stvl"))
    costmap = merged["local_costmap"]["local_costmap"]["ros__parameters"]
    assert costmap["plugins"] == ["voxel_layer", "depth_layer", "inflation_layer"]
    assert costmap["depth_layer"] == layer_of("nav2_stvl")
    assert (costmap["width"], costmap["voxel_layer"], merged["amcl"]) == (3, 1, NAV2["amcl"])
    assert add_layer(merged, recipe("nav2_stvl")) == merged, "a second time changes nothing"
    with pytest.raises(DataError, match="depth_layer: the local costmap has another layer of this name"):
        add_layer(merged, recipe("nav2_voxel_layer"))


def test_a_file_without_a_local_costmap_is_refused(tmp_path):
    (tmp_path / "nav2.yaml").write_text("amcl: {ros__parameters: {x: 1}}\n")
    with pytest.raises(DataError, match=r"local_costmap\.local_costmap\.ros__parameters is missing"):
        add_layer_to_file(tmp_path / "nav2.yaml", RECIPES / "nav2_stvl.yaml", tmp_path / "merged.yaml")
    assert not (tmp_path / "merged.yaml").exists()
