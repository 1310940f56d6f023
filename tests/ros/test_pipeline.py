"""The pipeline of one camera: what it computes, publishes, counts and logs. Without topics, mostly without a network."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, RegionOfInterest

from cards import SIZE, image_message, info_message, noise
from fadepth_core.common.framing import Framing, focal_length
from fadepth_core.messages.outgoing import CLOUD_FIELDS
from fadepth_core.messages.quiet_decoder import is_quiet
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, EngineError
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_ros import ground_correction
from fadepth_ros.diagnostics import status_values, summary
from fadepth_ros.engine_pool import load_engine
from fadepth_ros.pipeline import COLOR, DEPTH, INFO, POINTS
from fadepth_ros.statistics import Statistics
from fakes import SECOND, EngineLoader, FakeEngine, FlatRoad, RecordedOutputs, make_pipeline, settings


def frame(second):
    return serialize_message(image_message(noise(), "rgb8", second * SECOND))


def depths_of(message):
    return np.frombuffer(deserialize_message(message, PointCloud2).data, np.float32).reshape(-1, 4)[:, 2]


@pytest.fixture
def ground_in_every_frame(monkeypatch):
    monkeypatch.setattr(ground_correction, "GROUND_PERIOD", 0.0)


@pytest.mark.parametrize(
    ("subscribed", "points"),
    [
        ((), []),
        ((INFO,), []),
        ((DEPTH,), [False]),
        ((COLOR, INFO), [False]),
        ((POINTS,), [True]),
        ((DEPTH, POINTS), [True]),
    ],
)
def test_only_subscribed_outputs_are_computed(subscribed, points):
    outputs, loader = RecordedOutputs(*subscribed), EngineLoader()
    make_pipeline(outputs, loader).offer_image(frame(1))
    assert set(outputs.published) == set(subscribed)
    assert [request.points for engine in loader.engines for request in engine.requests] == points


def test_depth_depends_on_the_focal_length_for_any_subscriber(tmp_path, caplog):
    """A checkpoint with a focal length: depth is the same with and without points; without intrinsics there is a warning."""
    source, path = Checkpoint(), str(tmp_path / "net.safetensors")
    export_checkpoint(load_network(source), replace(source.description, focal_length=100.0), path)

    def depth(subscribed, camera_info=True):
        outputs = RecordedOutputs(*subscribed)
        make_pipeline(outputs, load_engine, camera_info=camera_info, checkpoint=path).offer_image(frame(1))
        return outputs.depth

    without_points = depth((DEPTH,))
    np.testing.assert_allclose(depth((DEPTH, POINTS)), without_points, rtol=1e-5)
    assert not caplog.records
    k = np.array(info_message().k).reshape(3, 3)
    factor = focal_length(Framing.plan(SIZE).network_intrinsics(k)) / 100.0
    assert not 0.9 < factor < 1.1
    np.testing.assert_allclose(factor * depth((DEPTH,), camera_info=False), without_points, rtol=1e-5)
    assert "depth is not in metres of this camera" in caplog.text


def test_the_camera_height_scales_depth(ground_in_every_frame):
    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs, FlatRoad, camera_height=1.5)

    def nearest():
        pipeline.offer_image(frame(len(outputs.published) + 1))
        return outputs.depth[-1, -1]

    first = nearest()
    assert nearest() == pytest.approx(1.5 * first, rel=0.01), "measured in the first frame, applied to the second"
    assert nearest() == pytest.approx(1.5 * first, rel=0.01), "measured before it is applied"
    assert status_values(pipeline.statistics.report(), pipeline)["scale from camera height"] == "1.500"
    pipeline.configure(settings(camera_height=3.0))
    nearest()
    assert nearest() == pytest.approx(3.0 * first, rel=0.01)
    pipeline.configure(settings())
    assert nearest() == pytest.approx(first, rel=1e-5)
    assert "scale from camera height" not in status_values(pipeline.statistics.report(), pipeline)


def test_the_scale_survives_changed_intrinsics_and_a_wrong_camera_info(ground_in_every_frame):
    """Intrinsics that change with the focus, and one CameraInfo of another camera."""
    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs, FlatRoad, camera_height=1.5)
    nearest = []
    for step in range(5):
        info = info_message()
        info.k[0] += 0.01 * step
        if step == 3:
            info.header.frame_id = "another"
        pipeline.offer_camera_info(serialize_message(info))
        pipeline.offer_image(frame(step + 1))
        nearest.append(outputs.depth[-1, -1])
    np.testing.assert_allclose(np.array(nearest[1:]) / nearest[0], 1.5, rtol=0.01)


def test_limits_do_not_hide_the_ground_from_its_measurement(ground_in_every_frame):
    outputs, loader = RecordedOutputs(DEPTH, POINTS), EngineLoader(FlatRoad)
    pipeline = make_pipeline(outputs, loader, camera_height=0.2, max_depth=0.6, min_depth=0.1)
    for second in range(1, 4):
        pipeline.offer_image(frame(second))
    assert {request.limits for request in loader.engines[0].requests} == {(0.0, np.inf)}
    assert pipeline.ground.factor == pytest.approx(0.2, rel=0.01)
    depth = outputs.depth.ravel()
    finite = depth[np.isfinite(depth)]
    assert 0.1 <= finite.min() <= finite.max() <= np.float32(0.6)
    assert np.array_equal(np.isnan(depths_of(outputs.last[POINTS])), ~np.isfinite(depth))


class Jittering(FakeEngine):
    """Depth that is alternately a tenth larger and as it should be."""

    def depth_rows(self):
        return super().depth_rows() * (1.1 if len(self.requests) % 2 else 1.0)


@pytest.mark.parametrize("mode", ["off", "scale", "full"])
def test_temporal_removes_jitter_before_the_limits(mode):
    """Depth of a camera at rest, 10 m in the top row. A change of the parameter counts from the next frame on."""
    outputs = RecordedOutputs(DEPTH, POINTS)
    pipeline = make_pipeline(outputs, Jittering, temporal=mode, max_depth=8.0)
    raw = [
        serialize_message(image_message(noise(), "rgb8", 10 * SECOND + number * SECOND // 10)) for number in range(11)
    ]
    nearest = []
    for image in raw[:-1]:
        pipeline.offer_image(image)
        depth = outputs.depth
        nearest.append(depth[-1, -1])
        assert depth[np.isfinite(depth)].max() <= np.float32(8.0) < depth[0, 0] == np.inf
        np.testing.assert_array_equal(depths_of(outputs.last[POINTS]), np.where(depth < np.inf, depth, np.nan).ravel())
    jitter = np.ptp(np.log(nearest[4:]))
    assert jitter == pytest.approx(np.log(1.1), abs=1e-4) if mode == "off" else jitter < 0.6 * np.log(1.1)
    pipeline.configure(settings(temporal="off"))
    pipeline.offer_image(raw[-1])
    assert outputs.depth[-1, -1] == pytest.approx(nearest[0], rel=1e-3)


def test_points_and_colours_follow_their_ranges():
    def published(**changes):
        outputs = RecordedOutputs(POINTS, COLOR)
        make_pipeline(outputs, **changes).offer_image(frame(1))
        color = np.frombuffer(deserialize_message(outputs.last[COLOR], Image).data, np.uint8)
        return depths_of(outputs.last[POINTS]), color

    z, color = published()
    low, high = (float(value) for value in np.nanquantile(z, (0.3, 0.7)))
    cut, _ = published(**{"points.min_z": low, "points.max_z": high})
    assert np.nanmin(cut) >= np.float32(low)
    assert np.nanmax(cut) <= np.float32(high)
    assert np.isfinite(cut).mean() == pytest.approx(0.4, abs=0.02)
    _, other = published(**{"color.near": 0.1, "color.far": 0.5})
    assert (color != other).mean() > 0.2


class Step(FakeEngine):
    """10 m in the upper half, 2 m in the lower half."""

    def depth_rows(self):
        rows = super().depth_rows()
        return np.where(np.arange(len(rows)) < len(rows) // 2, 10.0, 2.0)


def test_the_cloud_follows_its_parameters():
    def cloud(engine=FakeEngine, **changes):
        outputs = RecordedOutputs(POINTS)
        make_pipeline(outputs, engine, **changes).offer_image(frame(1))
        message = deserialize_message(outputs.last[POINTS], PointCloud2)
        return message, np.frombuffer(message.data, np.float32).reshape(-1, message.point_step // 4)

    whole, points = cloud(**{"points.fields": "xyz"})
    distances = np.linalg.norm(points, axis=1)
    limit = float(np.nanmedian(distances))
    message, near = cloud(**{"points.fields": "xyzi", "points.max_range": limit})
    assert [field.name for field in message.fields] == ["x", "y", "z", "intensity"]
    assert (message.height, message.width) == (whole.height, whole.width)
    np.testing.assert_array_equal(np.isnan(near[:, 2]), ~(distances <= np.float32(limit)))
    message, means = cloud(**{"points.voxel_size": 0.05, "points.max_range": limit})
    assert (message.height, message.width, message.is_dense) == (1, len(means), True)
    assert 1 < len(means) < (distances <= limit).sum()
    assert len(np.unique(np.floor(means[:, :3] / 0.05), axis=0)) > 0.95 * len(means), "rounding of the mean aside"
    for fields in CLOUD_FIELDS:
        message, _ = cloud(**{"points.fields": fields, "points.voxel_size": 0.05, "points.min_z": 1000.0})
        assert (message.height, message.width, len(message.data)) == (1, 0, 0), "nothing is left"
    message, edges = cloud(Step, **{"points.fields": "xyz", "points.edge_threshold": 0.1})
    rows = np.isnan(edges[:, 2]).reshape(message.height, message.width)
    assert (rows == rows[:, :1]).all()
    assert rows[:, 0].nonzero()[0].tolist() == [message.height // 2 - 1, message.height // 2]


def test_published_intrinsics_follow_region_and_binning():
    """Sides, offsets and binning all differ, so that the test notices if two of them are exchanged."""
    info = info_message((500, 700), focal=600.0)
    info.binning_x, info.binning_y = 2, 3
    info.roi = RegionOfInterest(x_offset=60, y_offset=30, width=320, height=360)
    outputs = RecordedOutputs(INFO)
    pipeline = make_pipeline(outputs, camera_info=False, full_resolution=True)
    pipeline.offer_camera_info(serialize_message(info))
    pipeline.offer_image(frame(1))
    k = deserialize_message(outputs.last[INFO], CameraInfo).k.reshape(3, 3)
    source = info.k.reshape(3, 3)
    assert (k[0, 0], k[1, 1]) == pytest.approx((source[0, 0] / 2, source[1, 1] / 3))
    assert k[0, 2] == pytest.approx((source[0, 2] - 60 + 0.5) / 2 - 0.5)
    assert k[1, 2] == pytest.approx((source[1, 2] - 30 + 0.5) / 3 - 0.5)


def test_a_frame_of_an_impossible_size_is_dropped_alone():
    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs, network_size=[256, 64], crop_to_aspect=True)
    pipeline.offer_image(serialize_message(image_message(noise((20, 1000)), "rgb8", SECOND)))
    pipeline.offer_image(frame(2))
    assert pipeline.statistics.report().dropped == {"size": 1}
    assert outputs.published == [DEPTH]


def test_a_withheld_cloud_is_not_a_dropped_frame():
    outputs = RecordedOutputs(DEPTH, POINTS)
    pipeline = make_pipeline(outputs, camera_info=False)
    pipeline.offer_image(frame(1))
    report = pipeline.statistics.report()
    assert outputs.published == [DEPTH]
    assert report.dropped == {}
    assert report.problems == {"no_camera_info": 1}
    assert "are withheld" in summary(report, degraded=False)[1]


def stamped(milliseconds):
    return serialize_message(image_message(noise(), "rgb8", milliseconds * 10**6))


@pytest.mark.parametrize(
    ("stamps", "dropped"),
    [
        ([5000, 4900, 5033, 4933, 5066, 4966, 5100], 3),  # two cameras on one topic
        ([5000, 5033, 4500, 4533, 4566, 4600, 4633], 1),  # a clock set back
        ([5000, 5033, 1000, 1033], 0),  # a bag that starts again
        ([5000, 4990, 4980, 5033], 2),
    ],
)
def test_a_late_frame_is_dropped_and_a_clock_set_back_is_followed(stamps, dropped):
    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs)
    for stamp in stamps:
        pipeline.offer_image(stamped(stamp))
    assert pipeline.statistics.report().dropped.get("stamp", 0) == dropped
    assert len(outputs.published) == len(stamps) - dropped


class Clock:
    """The steady clock of the statistics."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("fadepth_ros.statistics.time", SimpleNamespace(monotonic=lambda: self.now))

    def reports(self, statistics, period, seconds, frames=True):
        """A frame every `period` seconds, with a depth image, and a report every second."""
        reports, due = [], self.now + period
        for end in itertools.accumulate([1.0] * seconds, initial=self.now):
            while due <= end:
                self.now, due = due, due + period
                if frames:
                    statistics.received(1)
                    statistics.finished([DEPTH], 0.01, 0.02)
            self.now = end
            reports.append(statistics.report())
        return reports


@pytest.mark.parametrize("period", [0.04, 0.9, 3.3, 15.0])
def test_a_camera_is_silent_only_if_it_misses_its_own_rate(monkeypatch, period):
    clock, statistics = Clock(monkeypatch), Statistics(logging.getLogger("test"))
    assert statistics.report().silent, "none has arrived"
    clock.reports(statistics, period, int(3 * period) + 2)
    serving = clock.reports(statistics, period, 60)
    assert not any(report.silent for report in serving)
    for report in serving:
        assert report.published[DEPTH] / report.seconds == pytest.approx(1 / period, rel=0.35)
    stopped = clock.reports(statistics, period, 70, frames=False)
    limit = min(int(6 * period) + 3, 62)  # three intervals, of which one was twice as long between the calls above
    assert all(report.silent for report in stopped[limit:])


def test_the_rate_after_an_idle_time_does_not_count_that_time(monkeypatch):
    clock, statistics = Clock(monkeypatch), Statistics(logging.getLogger("test"))
    clock.reports(statistics, 0.1, 5)
    clock.reports(statistics, 1.0, 300, frames=False)
    clock.now += 0.7  # within the time of a report
    statistics.resume()
    for _ in range(2):
        clock.now += 0.1
        statistics.received(1)
        statistics.finished([DEPTH], 0.01, 0.02)
    report = statistics.report()
    assert report.published[DEPTH] / report.seconds == pytest.approx(10)


@pytest.fixture
def logged(monkeypatch, caplog):
    """A clock, and a function that returns the lines logged since its last call, with their levels."""
    caplog.set_level("INFO")
    clock = Clock(monkeypatch)

    def lines():
        new = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return new

    return clock, lines


def test_a_warning_is_logged_again_after_each_period_while_its_condition_lasts(logged):
    clock, lines = logged
    statistics = Statistics(logging.getLogger("test"))
    for tenth in range(111):
        clock.now = 100.0 + 0.1 * tenth
        statistics.warning("cold", "weather")
        statistics.warning("late", "train")
        expected = [("WARNING", "cold"), ("WARNING", "late")] if tenth in (0, 50, 100) else []
        assert lines() == expected, tenth


@pytest.mark.parametrize("by_frame", [True, False])
@pytest.mark.parametrize(("kind", "level"), [("warning", "WARNING"), ("note", "INFO")])
def test_another_text_of_the_same_cause_is_logged_when_the_period_is_over(logged, kind, level, by_frame):
    """Also if it is reported only once, and whether frames still arrive or not."""
    clock, lines = logged
    statistics = Statistics(logging.getLogger("test"))
    for second, text in enumerate(["cold", "snow", "ice", "cold"]):
        clock.now = 100.0 + second
        getattr(statistics, kind)(text, "weather")
    assert lines() == [(level, "cold")]

    def wait(end):
        clock.now = end
        statistics.received(1) if by_frame else statistics.report()

    wait(104.9)
    assert lines() == []
    wait(105.0)
    assert lines() == [(level, "ice (3 s ago)")]
    wait(120.0)
    assert lines() == []


def test_of_two_texts_that_alternate_both_are_logged(logged):
    clock, lines = logged
    statistics = Statistics(logging.getLogger("test"))
    for tenth in range(101):
        clock.now = 100.0 + 0.1 * tenth
        statistics.warning(("cold", "ice")[tenth % 2], "weather")
    assert lines() == [("WARNING", "cold"), ("WARNING", "ice"), ("WARNING", "cold")]


def test_a_camera_info_of_another_size_that_comes_back_within_the_period_is_logged_again(logged):
    """An image that was already in the queue meets the next camera_info, which then goes on with the wrong size."""
    clock, lines = logged
    pipeline = make_pipeline(RecordedOutputs(POINTS))
    small, right, wide = (serialize_message(info_message(size)) for size in ((60, 80), SIZE, (240, 320)))
    for tenth, info in enumerate([small, right, *[wide] * 100]):
        clock.now = 100.0 + 0.1 * tenth
        pipeline.offer_camera_info(info)
        pipeline.offer_image(frame(tenth))
    sizes = [text.split("its size is ")[1].split(",")[0] for _, text in lines() if "its size is" in text]
    assert sizes == ["80x60", "320x240", "320x240"]
    assert pipeline.statistics.report().errors["camera_info_size"].startswith("camera_info: its size is 320x240")


def test_superseded_frames_are_counted():
    pipeline = make_pipeline(RecordedOutputs(DEPTH))
    pipeline.offer_image(frame(1), superseded=3)
    report = pipeline.statistics.report()
    assert (report.received, report.dropped, report.published) == (4, {"superseded": 3}, {DEPTH: 1})


def test_an_engine_that_cannot_start_is_tried_again_after_the_retry_period(monkeypatch, caplog):
    clock = [1000.0]
    monkeypatch.setattr("fadepth_ros.engine_pool.time", SimpleNamespace(monotonic=lambda: clock[0]))
    attempts = []

    def loader(*arguments):
        attempts.append(clock[0])
        if len(attempts) < 3:
            raise EngineError("no backend can run it")
        return FakeEngine(*arguments)

    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs, loader, retry_period=5.0)
    for second in range(1, 12):
        pipeline.offer_image(frame(second))
        clock[0] += 1.0
    assert attempts == [1000.0, 1005.0, 1010.0]
    assert outputs.published == [DEPTH]
    assert "no depth: no backend can run it; next attempt in 5 s or less" in caplog.text
    assert pipeline.statistics.report().dropped == {"engine": 10}


def test_an_internal_error_drops_one_frame(caplog):
    class Faulty(FakeEngine):
        def infer(self, request):
            if not self.calls:
                self.calls.append(1)
                raise ZeroDivisionError("a bug")
            return super().infer(request)

    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs, Faulty)
    pipeline.offer_image(frame(1))
    pipeline.offer_image(frame(2))
    assert outputs.published == [DEPTH]
    assert pipeline.statistics.report().dropped == {"internal": 1}
    assert "internal error on a frame from image: a bug" in caplog.text
    assert "ZeroDivisionError" in caplog.text, "with its traceback"


@pytest.mark.parametrize(("camera", "rate", "expected"), [(25, 10, 10), (30, 7, 7), (10, 25, 10), (60, 0, 60)])
def test_clouds_keep_the_maximum_rate(camera, rate, expected):
    outputs = RecordedOutputs(POINTS)
    pipeline = make_pipeline(outputs, **{"points.max_rate": float(rate)})
    for index in range(camera * 4):
        pipeline.process(serialize_message(image_message(noise(), "rgb8", index + 1)), 1000 + index / camera)
    assert len(outputs.published) / 4 == pytest.approx(expected, abs=0.5)


def test_a_higher_rate_of_clouds_holds_at_once():
    outputs = RecordedOutputs(POINTS)
    pipeline = make_pipeline(outputs, **{"points.max_rate": 0.001})
    for index in range(4):
        pipeline.process(frame(index + 1), 1000.0 + index)
    pipeline.configure(settings())
    outputs.published.clear()
    for index in range(4, 8):
        pipeline.process(frame(index + 1), 1000.0 + index)
    assert outputs.published == [POINTS] * 4


def test_a_long_run_keeps_no_frames():
    """Memory of the process after 300 more frames with all outputs."""
    pipeline = make_pipeline(RecordedOutputs(DEPTH, INFO, POINTS, COLOR), load_engine, network_size=[32, 64])

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for second in range(1, 101):
        pipeline.offer_image(frame(second))
    before = resident()
    for second in range(101, 401):
        pipeline.offer_image(frame(second))
    assert resident() - before < 6e6, "a third of the size of 300 frames"


def test_load_engine_passes_on_every_setting():
    values = settings(
        backend="torch",
        network_size=[64, 96],
        crop_to_aspect=True,
        full_resolution=True,
        threads=1,
        cameras=["front", "rear"],
    )
    engine = load_engine(values.engine, SIZE, logging.getLogger("test"))
    assert isinstance(engine, DepthEngine)
    assert engine.description == "torch fp32 on CPU, 1 threads"
    assert engine.batches
    assert engine.framing.network_size == (64, 96)
    assert engine.framing.crop != (0, 0, *SIZE)
    assert engine.framing.output_size == engine.framing.crop[2:]


# ------------------------------------------------------------------------------------- what the camera's messages tell


def test_images_of_a_12_bit_camera_are_as_bright_as_those_of_8_bits_and_stay_so():
    loader = EngineLoader()
    pipeline = make_pipeline(RecordedOutputs(DEPTH), loader)
    grey = noise()[..., 0]
    for second, (pixels, encoding) in enumerate(
        [(grey, "mono8"), (grey.astype(np.uint16) * 16, "mono16"), (grey.astype(np.uint16), "mono16")]
    ):
        pipeline.offer_image(serialize_message(image_message(pixels, encoding, second * SECOND)))
    eight, twelve, dark = (request.image.astype(int) for request in loader.engines[0].requests)
    assert np.abs(twelve - eight).max() <= 1
    assert np.abs(dark - eight / 16).max() <= 1


def test_what_is_unusual_about_a_camera_info_is_logged_once(caplog):
    caplog.set_level("INFO")
    outputs = RecordedOutputs(POINTS, INFO)
    pipeline = make_pipeline(outputs, camera_info=False)
    info = info_message(frame_id="lidar")
    for second in range(3):
        info.header.stamp.sec = second
        pipeline.offer_camera_info(serialize_message(info))
        pipeline.offer_image(frame(second))
    assert outputs.published == [POINTS, INFO] * 3
    lines = [record for record in caplog.records if "lidar" in record.getMessage()]
    assert [line.levelname for line in lines] == ["INFO"]
    assert lines[0].getMessage().startswith("camera_info: its frame_id is 'lidar'")


@pytest.mark.skipif(not is_quiet(), reason="the decoder's lines cannot be read here")
def test_a_damaged_compressed_image_is_used_and_counted(caplog):
    outputs = RecordedOutputs(DEPTH)
    pipeline = make_pipeline(outputs, image_transport="compressed")
    jpeg = cv2.imencode(".jpg", noise())[1].tobytes()
    for second in range(3):
        message = CompressedImage(format="jpeg", data=jpeg[:-40] + jpeg[-2:])
        message.header.stamp.sec = second
        pipeline.offer_image(serialize_message(message))
    assert outputs.published == [DEPTH] * 3
    assert pipeline.statistics.report().problems["damaged"] == 3
    assert caplog.text.count("image: a compressed image is damaged: Corrupt JPEG data: premature end") == 1


def test_a_compressed_image_far_larger_than_its_camera_is_not_decoded(caplog):
    pipeline = make_pipeline(RecordedOutputs(DEPTH), image_transport="compressed")
    webp = bytearray(cv2.imencode(".webp", noise(), (cv2.IMWRITE_WEBP_QUALITY, 101))[1].tobytes())
    webp[21:25] = (5000 - 1 | 5000 - 1 << 14).to_bytes(4, "little")  # the size in its header
    pipeline.offer_image(serialize_message(CompressedImage(format="webp", data=bytes(webp))))
    assert "the image is 5000x5000; at most 16 megapixels are decoded; frame dropped" in caplog.text
