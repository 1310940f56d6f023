"""Bad input through real topics: it never stops the node, is never published as depth, and is counted and logged."""

from __future__ import annotations

import itertools
import os
import time

import numpy as np
import pytest
from rclpy.serialization import serialize_message

from cards import SIZE, image_message, info_message, noise, run_node
from fadepth_core.common.framing import choose_network_size
from fadepth_ros.statistics import WARN_PERIOD

SECOND = 10**9
ALL = ("depth/image", "depth/points", "depth/camera_info")
_seconds = itertools.count(1000)
_good: set[int] = set()  # stamps of good frames; only these may be published


def new_image(size=SIZE):
    """An image with a stamp of its own."""
    return image_message(noise(size), "rgb8", next(_seconds) * SECOND)


def good_image(size=SIZE):
    """An image that the node may publish depth of."""
    message = new_image(size)
    _good.add(message.header.stamp.sec)
    return message


def changed(**fields):
    message = new_image()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def stamps(messages):
    return {message.header.stamp.sec for message in messages}


@pytest.fixture(scope="module")
def robot(start_robot):
    robot = start_robot()
    robot.subscribe(*ALL)
    robot.wait_for_node()
    robot.info = info_message()
    expect_depth(robot)
    return robot


@pytest.fixture(autouse=True)
def _restore(request):
    """After each test, wait until the node publishes again."""
    yield
    if "robot" in request.fixturenames:
        robot = request.getfixturevalue("robot")
        robot.info = info_message()
        expect_depth(robot)


def clear(robot):
    for messages in robot.received.values():
        messages.clear()


def expect_depth(robot, outputs=ALL):
    """Publish good frames until all `outputs` of one of them have arrived; the stamps of the frames, in order.

    Each output arrives in the order in which it was published, so those of earlier frames have arrived, too.
    """
    clear(robot)
    published = []

    def answered():
        message = good_image()
        published.append(message.header.stamp.sec)
        robot.publish_image(message)
        return all(stamps(robot.received[name]) & set(published) for name in outputs)

    robot.wait_for(answered)
    return published


def expect_refusal(robot, message, cause, warning):
    """Publish `message` until it is counted under `cause` and logged with the topic's name; nothing may come out of it."""
    clear(robot)
    before, warnings = robot.dropped(cause), robot.process.log.count(warning)
    start = time.monotonic()

    def refused():
        robot.publish_image(message)
        # A warning of the same cause in the test before delays this one.
        return robot.dropped(cause) >= before + 5 and robot.process.log.count(warning) > warnings

    robot.wait_for(refused)
    published = set().union(*(stamps(messages) for messages in robot.received.values()))
    assert published <= _good, "the bad image was published"
    logged = robot.process.log.count(warning) - warnings
    assert logged <= 1 + (time.monotonic() - start) / WARN_PERIOD, "more warnings than WARN_PERIOD allows"
    assert "/image: " in next(line for line in robot.process.lines if warning in line)
    assert robot.process.alive
    expect_depth(robot)


@pytest.mark.parametrize(
    ("message", "cause", "warning"),
    [
        (changed(encoding="rgb9"), "encoding", "unknown encoding 'rgb9'"),
        (changed(step=7), "step", "step is 7, a row of 160 pixels in 'rgb8' takes 480 bytes"),
        (changed(data=b"\0" * 99), "short", "99 bytes of data, 120 rows of step 480 make 57600"),
        (changed(height=5, width=5), "size", "the image is 5x5"),
        (np.random.default_rng(0).bytes(500), "malformed", "not a CDR-encoded message"),
    ],
    ids=lambda value: value if isinstance(value, str) else "message",
)
def test_bad_images(robot, message, cause, warning):
    """One of each cause; test_messages.py has all of them."""
    expect_refusal(robot, message, cause, warning)


def test_size_change_mid_stream(robot):
    robot.info = info_message((90, 200))
    height, width = choose_network_size((90, 200))
    clear(robot)

    def answered():
        robot.publish_image(good_image((90, 200)))
        infos = robot.received["depth/camera_info"]
        return infos and (infos[-1].height, infos[-1].width) == (height, width)

    robot.wait_for(answered)
    k = robot.received["depth/camera_info"][-1].k
    assert k[0] == pytest.approx(info_message((90, 200)).k[0] * width / 200)
    robot.wait_for(lambda: "frames changed from 160x120 to 200x90" in robot.process.log)


def test_frames_that_arrive_late_are_dropped(robot):
    last = good_image()

    def answered():
        robot.publish_image(last)
        return last.header.stamp.sec in stamps(robot.received["depth/image"])

    robot.wait_for(answered)  # nothing newer is on its way
    late = new_image()
    late.header.stamp.sec, late.header.stamp.nanosec = last.header.stamp.sec - 1, 500_000_000
    _good.discard(late.header.stamp.sec)
    expect_refusal(robot, late, "stamp", "before the last frame's; it was superseded")


def test_depth_goes_on_after_the_clock_was_set_back(robot):
    """Playing a bag again sets the clock back. The node logs this as a problem."""
    message = good_image()
    message.header.stamp.sec = 5
    _good.add(5)
    clear(robot)

    def answered():
        message.header.stamp.nanosec += 1
        robot.publish_image(message)
        return 5 in stamps(robot.received["depth/image"])

    robot.wait_for(answered)
    robot.wait_for(lambda: "/image: stamps jumped back by" in robot.process.log)
    robot.wait_for(lambda: robot.problems("clock_reset") >= 1)


def with_k(values):
    info = info_message()
    info.k = values
    return info


@pytest.mark.parametrize(
    ("info", "cause", "warning"),
    [
        (with_k([0.0] * 9), "camera_info_uncalibrated", "K[0] is 0, which means uncalibrated"),
        (with_k([np.nan] * 9), "camera_info_calibration", "K[0] is nan"),
        (info_message((240, 320)), "camera_info_size", "its size is 320x240, the image's is 160x120"),
        (b"\0\1\0\0garbage", "camera_info_malformed", "not a CameraInfo"),
    ],
)
def test_a_bad_camera_info_withholds_only_what_needs_it(robot, info, cause, warning):
    robot.info = info

    def warned():
        robot.publish_image(good_image())
        return robot.problems(cause) >= 1 and any(warning in line for line in robot.process.lines)

    robot.wait_for(warned)
    line = next(line for line in robot.process.lines if warning in line)
    assert "/camera_info: " in line
    assert "depth/points and depth/camera_info are withheld" in line
    # Frames that were sent before the node had the bad camera_info may still come out complete; later ones must not.
    later = set(expect_depth(robot, outputs=("depth/image",)) + expect_depth(robot, outputs=("depth/image",)))
    assert not stamps(robot.received["depth/points"]) & later
    assert not stamps(robot.received["depth/camera_info"]) & later


def test_without_camera_info_there_is_depth_and_a_warning(start_robot):
    robot = start_robot()
    robot.subscribe("depth/image", "depth/points")
    robot.wait_for_node()
    expect_depth(robot, outputs=("depth/image",))
    robot.wait_for(lambda: robot.problems("no_camera_info") >= 1)
    robot.wait_for(lambda: "/camera_info: no camera_info has arrived; depth/points" in robot.process.log)
    assert not robot.received["depth/points"]
    robot.info = info_message()
    expect_depth(robot, outputs=("depth/image", "depth/points"))


def test_the_level_of_diagnostics_is_warn_for_bad_images(robot):
    def warned():
        robot.publish_image(changed(encoding="rgb9"))
        return robot.level == b"\1" and "unknown encoding 'rgb9'" in robot.diagnostics.get("last error", "")

    robot.wait_for(warned)


def test_random_bytes_never_stop_the_node(robot):
    rng = np.random.default_rng(int(os.environ.get("FUZZ_SEED", "0")))
    good = serialize_message(new_image())
    for index in range(300):
        raw = bytearray(good if index % 2 else rng.bytes(rng.integers(0, 400)))
        for at in rng.integers(0, max(1, min(len(raw), 100)), 4):
            if raw:
                raw[at] = rng.integers(0, 256)
        robot.publish_image(bytes(raw))
        if index % 10 == 0:
            robot.spin(0.01)
    assert robot.process.alive
    # A flipped bit may have given a frame a stamp in the far future. The clock is then set back, which drops no frame.
    expect_depth(robot)
    assert "Traceback" not in robot.process.log


def test_a_broken_checkpoint_ends_the_node_with_a_reason(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\0" * 64)
    status, error = run_node("-p", f"checkpoint:={broken}")
    assert status == 1
    assert "broken.safetensors: not a complete safetensors file" in error
    assert "Traceback" not in error
