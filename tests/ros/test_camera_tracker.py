"""CameraInfo against images."""

from __future__ import annotations

import pytest
from rclpy.serialization import serialize_message

from cards import image_message, info_message, noise
from fadepth_core.messages.camera_tracker import CameraTracker, unusual
from fadepth_core.messages.images import MAX_COMPRESSED_PIXELS
from fadepth_ros.messages import read_image

FRAME = read_image(serialize_message(image_message(noise(), "rgb8", 1)))


def tracker_after(*infos):
    tracker = CameraTracker()
    for info in infos:
        tracker.update(info if isinstance(info, bytes) else serialize_message(info))
    return tracker


def test_a_camera_info_of_the_images_frame_and_size_matches():
    camera, problem = tracker_after(info_message()).match(FRAME)
    assert problem is None
    assert (camera.frame_id, camera.size) == (FRAME.frame_id, FRAME.size)


@pytest.mark.parametrize("frame_id", ["", "/" + FRAME.frame_id, FRAME.frame_id, "lidar"])
def test_frame_ids_need_not_agree_but_a_difference_is_worth_a_line(frame_id):
    camera, _ = tracker_after(info_message(frame_id=frame_id)).match(FRAME)
    said = [text[: text.index(",")] for text in unusual(camera, FRAME)]
    assert said == [f"its frame_id is '{frame_id}'"] * (frame_id != FRAME.frame_id)


def test_a_camera_info_without_size_describes_images_of_every_size():
    tracker = tracker_after(info_message((0, 0), focal=150.0))
    small = read_image(serialize_message(image_message(noise((90, 200)), "rgb8", 2)))
    for frame in (FRAME, FRAME, small, FRAME):
        camera, problem = tracker.match(frame)
        assert problem is None
        assert camera.size == frame.size
        assert tracker.match(frame)[0] is camera
    tracker.update(serialize_message(info_message((0, 0), focal=1e-3)))
    assert "focal lengths of P" in str(tracker.match(FRAME)[1])
    tracker.update(serialize_message(info_message()))
    assert tracker.match(FRAME)[1] is None


@pytest.mark.parametrize("at", [*range(4), *range(12, 60)])
def test_a_damaged_camera_info_does_not_hide_the_good_ones_after_it(at):
    good = serialize_message(info_message())
    bad = bytearray(good)
    bad[at] ^= 0x81
    tracker = tracker_after(bytes(bad))
    tracker.match(FRAME)
    tracker.update(good)
    assert tracker.match(FRAME)[1] is None


def test_a_camera_info_bounds_the_compressed_images_that_are_decoded():
    limits = [
        tracker_after(*infos).max_pixels
        for infos in ((), (info_message(),), (info_message((0, 0)),), (info_message((3000, 4000)),), (b"garbage",))
    ]
    most = MAX_COMPRESSED_PIXELS
    assert limits == [most, 16_000_000, most, 48_000_000, most]


def test_the_problem_says_why_there_is_no_camera():
    causes = {
        "no_camera_info": tracker_after(),
        "camera_info_size": tracker_after(info_message((240, 320))),
        "camera_info_malformed": tracker_after(info_message(), b"\0\1\0\0garbage"),
    }
    for cause, tracker in causes.items():
        camera, problem = tracker.match(FRAME)
        assert camera is None
        assert problem.cause == cause


def test_a_camera_info_is_parsed_again_only_if_more_than_its_stamp_changes():
    info = info_message()
    tracker = tracker_after(info)
    first, _ = tracker.match(FRAME)
    info.header.stamp.sec = 7
    tracker.update(serialize_message(info))
    assert tracker.match(FRAME)[0] is first
    info.k[0] += 1
    tracker.update(serialize_message(info))
    assert tracker.match(FRAME)[0] is not first


def test_the_last_match_is_kept_while_the_camera_info_is_unusable():
    tracker = tracker_after(info_message())
    first, _ = tracker.match(FRAME)
    tracker.update(serialize_message(info_message((240, 320))))
    assert tracker.match(FRAME)[0] is None
    assert tracker.last_match(FRAME) is first
    other = read_image(serialize_message(image_message(noise((90, 200)), "rgb8", 2)))
    assert tracker.last_match(other) is None
