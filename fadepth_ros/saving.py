"""The service `~/save`: picture, depth and cloud of the next frame of each camera, as files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger

from fadepth_core.common.files import user_path
from fadepth_core.runtime.snapshot import write_snapshot
from fadepth_ros.awaiting import InThread, Until
from fadepth_ros.camera_topics import CameraTopics
from fadepth_ros.messages import read_cloud
from fadepth_ros.pipeline import SavedFrame
from fadepth_ros.process import one_line

#: Seconds to wait for the next frame; the engine may have to be built before.
PATIENCE = 20.0


class SaveService:
    """Answers `~/save`.

    Args:
        cameras: returns the active cameras; none while the node is not active.
        refresh: called when frames are wanted or no longer wanted: subscribes to idle cameras.
        folder: returns the parameter `save_folder`.
    """

    def __init__(
        self,
        node: LifecycleNode,
        cameras: Callable[[], Sequence[CameraTopics]],
        refresh: Callable[[], None],
        folder: Callable[[], str],
    ):
        self._cameras, self._refresh, self._folder = cameras, refresh, folder
        self._wake = node.create_guard_condition(lambda: None).trigger
        # Images are delivered while a request waits for one, because it has a group of its own.
        node.create_service(Trigger, "~/save", self._save, callback_group=MutuallyExclusiveCallbackGroup())

    async def _save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        cameras = self._cameras()
        if not cameras:
            response.message = "the node is not active"
            return response
        waiting = [(camera, camera.active_pipeline, camera.active_pipeline.save_next()) for camera in cameras]
        self._refresh()
        end = time.monotonic() + PATIENCE
        await Until(
            lambda: all(frame.done() for _, _, frame in waiting) or time.monotonic() >= end or not self._cameras()
        )
        outcomes = []
        for camera, pipeline, frame in waiting:
            pipeline.cancel_save(frame)
            outcomes.append(await self._outcome(camera.name, frame))
        response.success = all(success for success, _ in outcomes)
        response.message = "; ".join(text for _, text in outcomes)
        return response

    async def _outcome(self, camera: str, frame: Future[SavedFrame]) -> tuple[bool, str]:
        """Write what has arrived of a camera; whether all went well, and what to answer."""
        of_camera = f"{camera}: " if camera else ""
        if not frame.done():
            reason = (
                f"no depth within {PATIENCE:.0f} s, see /diagnostics" if self._cameras() else "deactivated meanwhile"
            )
            return False, of_camera + reason
        saved = frame.result()
        folder = user_path(self._folder())
        try:
            files = await InThread(lambda: write_frame(folder, camera, saved), self._wake, "saving a frame")
        except OSError as error:
            return False, of_camera + one_line(error)
        note = "" if saved.cloud is not None else " (no cloud: the frame has no usable camera_info)"
        return True, ", ".join(str(path) for path in files) + note


def write_frame(folder: Path, camera: str, saved: SavedFrame) -> list[Path]:
    """Write a frame as `write_snapshot` does, named after the camera and the stamp; the files. Raises OSError."""
    stamp = saved.stamp
    # No name of a camera has a dot, so no two cameras get one name.
    name = f"{camera.replace('/', '.') or 'depth'}_{stamp.sec}_{stamp.nanosec:09d}"
    points = {} if saved.cloud is None else read_cloud(deserialize_message(saved.cloud, PointCloud2))
    return write_snapshot(folder.absolute(), name, saved.picture, saved.depth, **points)
