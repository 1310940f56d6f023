"""CameraInfo against images."""

from __future__ import annotations

from rclpy.serialization import serialize_message

from cards import image_message, info_message, noise
from fadepth_ros import messages
from fadepth_ros.camera_tracker import CameraTracker

FRAME = messages.read_image(serialize_message(image_message(noise(), "rgb8", 1)))


def tracker_after(*infos):
    tracker = CameraTracker()
    for info in infos:
        tracker.update(info if isinstance(info, bytes) else serialize_message(info))
    return tracker


def test_a_camera_info_of_the_images_frame_and_size_matches():
    camera, problem = tracker_after(info_message()).match(FRAME)
    assert problem is None
    assert (camera.frame_id, camera.size) == (FRAME.frame_id, FRAME.size)


def test_the_problem_says_why_there_is_no_camera():
    causes = {
        "no_camera_info": tracker_after(),
        "camera_info_frame": tracker_after(info_message(frame_id="lidar")),
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
    tracker.update(serialize_message(info_message(frame_id="lidar")))
    assert tracker.match(FRAME)[0] is None
    assert tracker.last_match(FRAME) is first
    other = messages.read_image(serialize_message(image_message(noise((90, 200)), "rgb8", 2)))
    assert tracker.last_match(other) is None
