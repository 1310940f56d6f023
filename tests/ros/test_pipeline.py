"""What no topic shows from outside: lifecycle, the newest frame, engines that fail, the cost of what nobody wants."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, RegionOfInterest

from cards import SIZE, image_message, info_message, noise
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, EngineError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_ros import pipeline as pipeline_module
from fadepth_ros.node import DepthNode, _judge, _values
from fadepth_ros.parameters import SPECS, Settings
from fadepth_ros.pipeline import COLOR, DEPTH, INFO, POINTS, Engines, Pipeline, load_engine

SECOND = 10**9


class Recorder:
    """Outputs that remember."""

    def __init__(self, *wanted):
        self.names, self.published, self.last = set(wanted), [], {}

    def wanted(self):
        return self.names

    def publish(self, output, message):
        self.published.append(output)
        self.last[output] = message

    def closed(self):
        return False

    def now(self):
        return 100 * SECOND


def settings(**changes):
    return Settings.from_values({spec.name: spec.default for spec in SPECS} | changes)


def frame(second):
    return serialize_message(image_message(noise(), "rgb8", second * SECOND))


class CountingEngine:
    """Counts what the real engine is asked."""

    def __init__(self, *arguments):
        self._engine = load_engine(*arguments)
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def infer(self, image, intrinsics, **options):
        self.calls.append(options["points"])
        return self._engine.infer(image, intrinsics, **options)


def make_pipeline(outputs, loader=CountingEngine, **changes):
    made = Pipeline(settings(**changes), outputs, logging.getLogger("test"), engines=Engines(loader))
    made.offer_camera_info(serialize_message(info_message()))
    return made


@pytest.mark.parametrize(
    ("wanted", "calls"),
    [
        ((), []),
        ((INFO,), []),
        ((DEPTH,), [False]),
        ((COLOR, INFO), [False]),
        ((POINTS,), [True]),
        ((DEPTH, POINTS), [True]),
    ],
)
def test_only_what_is_wanted_is_computed(wanted, calls):
    outputs = Recorder(*wanted)
    engines = []
    made = make_pipeline(outputs, lambda *a: engines.append(CountingEngine(*a)) or engines[-1])
    made.offer_image(frame(1))
    assert set(outputs.published) == set(wanted)
    assert [call for engine in engines for call in engine.calls] == calls


def test_depth_follows_the_focal_length_whoever_listens(tmp_path, caplog):
    """A checkpoint that knows its focal length: depth is the same with and without points, and no camera is announced."""
    source = Checkpoint()
    paths = {focal: str(tmp_path / f"{focal}.safetensors") for focal in (None, 100.0)}
    for focal, path in paths.items():
        export_checkpoint(load_network(source), replace(source.description, focal_length=focal), path)

    def depth(wanted, checkpoint, camera=True):
        outputs = Recorder(*wanted)
        made = Pipeline(settings(checkpoint=checkpoint), outputs, logging.getLogger("test"))
        if camera:
            made.offer_camera_info(serialize_message(info_message()))
        made.offer_image(frame(1))
        return np.frombuffer(deserialize_message(outputs.last[DEPTH], Image).data, np.float32)

    plain = depth((DEPTH,), paths[None])
    k = np.array(info_message().k).reshape(3, 3)
    factor = Framing.plan(SIZE).network_focal_length(k) / 100.0
    assert not 0.9 < factor < 1.1
    for wanted in ((DEPTH,), (DEPTH, POINTS)):
        np.testing.assert_allclose(depth(wanted, paths[100.0]), factor * plain, rtol=1e-5)
    assert not caplog.records
    np.testing.assert_allclose(depth((DEPTH,), paths[100.0], camera=False), plain, rtol=1e-5)
    assert "depth is not in metres of this camera" in caplog.text


class FlatRoad(CountingEngine):
    """Answers a road one metre below the camera, times the scale."""

    def infer(self, image, intrinsics, **options):
        result = super().infer(image, intrinsics, **options)
        k = self.framing.output_intrinsics(np.array(info_message().k).reshape(3, 3))
        rows = np.arange(result.depth.shape[0]) - k[1, 2]
        road = options["scale"] * k[1, 1] / np.where(rows > 1, rows, np.nan)
        depth = np.repeat(np.where(np.isnan(road), np.inf, road)[:, None], result.depth.shape[1], axis=1)
        return replace(result, depth=depth.astype(np.float32))


def test_the_ground_brings_depth_to_scale(monkeypatch):
    monkeypatch.setattr(pipeline_module, "GROUND_PERIOD", 0.0)
    outputs = Recorder(DEPTH)
    made = make_pipeline(outputs, FlatRoad, camera_height=1.5)

    def depth():
        made.offer_image(frame(len(outputs.published) + 1))
        values = np.frombuffer(deserialize_message(outputs.last[DEPTH], Image).data, np.float32)
        return values[-1]

    first = depth()
    assert depth() == pytest.approx(1.5 * first, rel=0.01), "found in the first picture, applied from the second on"
    assert depth() == pytest.approx(1.5 * first, rel=0.01), "and measured before it is applied"
    assert _values(made.statistics.report(), made)["scale from camera height"] == "1.500"
    made.configure(settings(camera_height=3.0))
    depth()
    assert depth() == pytest.approx(3.0 * first, rel=0.01)
    made.configure(settings())
    assert depth() == pytest.approx(first, rel=1e-5)
    assert "scale from camera height" not in _values(made.statistics.report(), made)


def test_the_scale_survives_small_changes_and_strays(monkeypatch):
    """Intrinsics that drift with the focus, and one CameraInfo of another camera."""
    monkeypatch.setattr(pipeline_module, "GROUND_PERIOD", 0.0)
    outputs = Recorder(DEPTH)
    made = make_pipeline(outputs, FlatRoad, camera_height=1.5)
    ratios = []
    for step in range(5):
        info = info_message()
        info.k[0] += 0.01 * step
        if step == 3:
            info.header.frame_id = "another"
        made.offer_camera_info(serialize_message(info))
        made.offer_image(frame(step + 1))
        ratios.append(np.frombuffer(deserialize_message(outputs.last[DEPTH], Image).data, np.float32)[-1])
    np.testing.assert_allclose(np.array(ratios[1:]) / ratios[0], 1.5, rtol=0.01)


def test_limits_do_not_hide_the_ground_from_its_scale(monkeypatch):
    monkeypatch.setattr(pipeline_module, "GROUND_PERIOD", 0.0)
    outputs = Recorder(DEPTH, POINTS)
    seen = []

    class Watching(FlatRoad):
        def infer(self, image, intrinsics, **options):
            seen.append(options["limits"])
            return super().infer(image, intrinsics, **options)

    made = make_pipeline(outputs, Watching, camera_height=0.2, max_depth=0.6, min_depth=0.1)
    for i in range(3):
        made.offer_image(frame(i + 1))
    assert set(seen) == {(0.0, np.inf)}
    assert made.ground.factor == pytest.approx(0.2, rel=0.01)
    depth = np.frombuffer(deserialize_message(outputs.last[DEPTH], Image).data, np.float32)
    finite = depth[np.isfinite(depth)]
    assert 0.1 <= finite.min() <= finite.max() <= np.float32(0.6)
    z = np.frombuffer(deserialize_message(outputs.last[POINTS], PointCloud2).data, np.float32).reshape(-1, 4)[:, 2]
    assert np.array_equal(np.isnan(z), ~np.isfinite(depth))


def test_points_and_colours_follow_their_ranges():
    def shown(**changes):
        outputs = Recorder(POINTS, COLOR)
        make_pipeline(outputs, **changes).offer_image(frame(1))
        z = np.frombuffer(deserialize_message(outputs.last[POINTS], PointCloud2).data, np.float32).reshape(-1, 4)[:, 2]
        return z, np.frombuffer(deserialize_message(outputs.last[COLOR], Image).data, np.uint8)

    z, color = shown()
    low, high = (float(value) for value in np.nanquantile(z, (0.3, 0.7)))
    cut, _ = shown(**{"points.min_z": low, "points.max_z": high})
    assert np.nanmin(cut) >= np.float32(low)
    assert np.nanmax(cut) <= np.float32(high)
    assert np.isfinite(cut).mean() == pytest.approx(0.4, abs=0.02)
    _, other = shown(**{"color.near": 0.1, "color.far": 0.5})
    assert (color != other).mean() > 0.2


def test_published_intrinsics_follow_region_and_binning():
    """Sides, offsets and binning all differ, so that none can stand for another."""
    info = info_message((500, 700), focal=600.0)
    info.binning_x, info.binning_y = 2, 3
    info.roi = RegionOfInterest(x_offset=60, y_offset=30, width=320, height=360)
    outputs = Recorder(INFO)
    made = Pipeline(settings(full_resolution=True), outputs, logging.getLogger("test"))
    made.offer_camera_info(serialize_message(info))
    made.offer_image(frame(1))
    k = deserialize_message(outputs.last[INFO], CameraInfo).k.reshape(3, 3)
    source = info.k.reshape(3, 3)
    assert (k[0, 0], k[1, 1]) == pytest.approx((source[0, 0] / 2, source[1, 1] / 3))
    assert k[0, 2] == pytest.approx((source[0, 2] - 60 + 0.5) / 2 - 0.5)
    assert k[1, 2] == pytest.approx((source[1, 2] - 30 + 0.5) / 3 - 0.5)


def test_a_frame_that_cannot_be_framed_costs_only_itself():
    outputs = Recorder(DEPTH)
    made = make_pipeline(outputs, network_size=[256, 64], crop_to_aspect=True)
    made.offer_image(serialize_message(image_message(noise((20, 1000)), "rgb8", SECOND)))
    made.offer_image(frame(2))
    report = made.statistics.report()
    assert report.dropped == {"size": 1}
    assert outputs.published == [DEPTH]


def test_what_is_withheld_is_not_a_dropped_frame():
    outputs = Recorder(DEPTH, POINTS)
    made = Pipeline(settings(), outputs, logging.getLogger("test"))
    made.offer_image(frame(1))
    report = made.statistics.report()
    assert outputs.published == [DEPTH]
    assert report.dropped == {}
    assert report.problems == {"no_camera_info": 1}
    assert "are withheld" in _judge(report, degraded=False)[1]


def test_overtaken_frames_are_counted():
    made = make_pipeline(Recorder(DEPTH))
    made.offer_image(frame(1), superseded=3)
    report = made.statistics.report()
    assert (report.received, report.dropped, report.published) == (4, {"superseded": 3}, {DEPTH: 1})


def test_an_engine_that_cannot_start_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(pipeline_module, "RETRY_PERIOD", 0.3)
    attempts = []

    def loader(*arguments):
        attempts.append(time.monotonic())
        if len(attempts) < 3:
            raise EngineError("no backend can run it")
        return load_engine(*arguments)

    outputs = Recorder(DEPTH)
    made = make_pipeline(outputs, loader)
    end = time.monotonic() + 20
    second = 0
    while not outputs.published and time.monotonic() < end:
        second += 1
        made.offer_image(frame(second))
        time.sleep(0.02)
    assert outputs.published == [DEPTH]
    assert len(attempts) == 3
    assert min(np.diff(attempts)) >= 0.3, "not at every frame"
    assert "no depth: no backend can run it; next attempt in" in caplog.text
    assert made.statistics.report().dropped["engine"] == second - 1


def test_a_fault_of_our_own_costs_one_frame(caplog):
    class Faulty(CountingEngine):
        def infer(self, *arguments, **options):
            if not self.calls:
                self.calls.append(None)
                raise ZeroDivisionError("a bug")
            return super().infer(*arguments, **options)

    outputs = Recorder(DEPTH)
    made = make_pipeline(outputs, Faulty)
    made.offer_image(frame(1))
    made.offer_image(frame(2))
    assert outputs.published == [DEPTH]
    assert made.statistics.report().dropped == {"internal": 1}
    assert "internal error on a frame from image: a bug" in caplog.text
    assert "ZeroDivisionError" in caplog.text, "with its traceback"


def test_camera_info_is_read_once_while_only_its_stamp_changes(monkeypatch):
    reads = []
    read = pipeline_module.messages.read_camera_info
    monkeypatch.setattr(pipeline_module.messages, "read_camera_info", lambda raw: reads.append(1) or read(raw))
    made = make_pipeline(Recorder(DEPTH))
    info = info_message()
    for second in range(5):
        info.header.stamp.sec = second
        made.offer_camera_info(serialize_message(info))
    info.k[0] += 1
    made.offer_camera_info(serialize_message(info))
    assert len(reads) == 2


@pytest.mark.parametrize(("camera", "rate", "expected"), [(25, 10, 10), (30, 7, 7), (10, 25, 10), (60, 0, 60)])
def test_clouds_keep_the_rate_that_was_asked(camera, rate, expected):
    outputs = Recorder(POINTS)
    made = make_pipeline(outputs, **{"points.max_rate": float(rate)})
    for index in range(camera * 4):
        made.process(serialize_message(image_message(noise(), "rgb8", index + 1)), 1000 + index / camera)
    assert len(outputs.published) / 4 == pytest.approx(expected, abs=0.5)


def test_a_long_run_keeps_no_frames():
    """Memory of the process after 300 more frames, all outputs on."""
    outputs = Recorder(DEPTH, INFO, POINTS, COLOR)
    made = make_pipeline(outputs)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for second in range(1, 101):
        made.offer_image(frame(second))
    before = resident()
    for second in range(101, 401):
        made.offer_image(frame(second))
    assert resident() - before < 6e6, "a third of what 300 frames take"


@pytest.fixture
def node():
    made = DepthNode(parameter_overrides=[rclpy.parameter.Parameter("autostart", value=False)])
    yield made
    made.destroy_node()


def test_transitions_there_and_back(node):
    done = TransitionCallbackReturn.SUCCESS
    node.autostart()  # told not to
    for _ in range(2):
        assert node.trigger_configure() == done
        assert node.trigger_activate() == done
        assert {t for t, _ in node.get_topic_names_and_types()} >= {
            "/depth/image",
            "/depth/points",
            "/depth/camera_info",
        }
        assert node.trigger_deactivate() == done
        assert node.trigger_cleanup() == done
    assert node.trigger_shutdown() == done


def test_inactive_parameters_may_change_again(node):
    node.trigger_configure()
    node.trigger_activate()
    compressed = rclpy.parameter.Parameter("image_transport", value="compressed")
    assert not node.set_parameters([compressed])[0].successful
    node.trigger_deactivate()
    assert node.set_parameters([compressed])[0].successful
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    subscribed = [s.topic_name for s in node.subscriptions]
    assert "/image/compressed" in subscribed


def test_a_checkpoint_that_vanished_fails_to_configure_and_may_be_tried_again(node, tmp_path, checkpoint_copy):
    path = checkpoint_copy(tmp_path)
    assert node.set_parameters([rclpy.parameter.Parameter("checkpoint", value=str(path))])[0].successful
    good = path.read_bytes()
    path.unlink()
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    path.write_bytes(good)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


@pytest.fixture
def checkpoint_copy():
    from fadepth_core.runtime.checkpoint import DEFAULT_CHECKPOINT

    def copy(directory):
        for suffix in (".safetensors", ".onnx"):
            source = DEFAULT_CHECKPOINT.with_suffix(suffix)
            (directory / source.name).write_bytes(source.read_bytes())
        return directory / DEFAULT_CHECKPOINT.name

    return copy


def test_an_unexpected_error_in_a_transition_is_logged(node, monkeypatch, capfd):
    monkeypatch.setattr("fadepth_ros.node.Pipeline", lambda *arguments: 1 / 0)
    node.trigger_configure()
    assert node.trigger_activate() == TransitionCallbackReturn.ERROR
    assert "on_activate failed" in capfd.readouterr().err


def test_load_engine_hands_on_every_setting():
    made = settings(
        backend="torch",
        network_size=[64, 96],
        crop_to_aspect=True,
        full_resolution=True,
        threads=1,
        cameras=["front", "rear"],
    )
    engine = load_engine(made.engine, SIZE, logging.getLogger("test"))
    assert isinstance(engine, DepthEngine)
    assert engine.description == "torch fp32 on CPU, 1 threads"
    assert engine.batches
    assert engine.framing.network_size == (64, 96)
    assert engine.framing.crop != (0, 0, *SIZE)
    assert engine.framing.output_size == engine.framing.crop[2:]
