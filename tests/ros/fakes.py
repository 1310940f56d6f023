"""Engines and outputs without a network and without topics, for tests of the pipeline."""

from __future__ import annotations

import functools
import logging

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from cards import PATIENCE, info_message
from fadepth_core.common.framing import Framing
from fadepth_core.common.pinhole import unproject
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthResult
from fadepth_ros.engine_pool import EnginePool
from fadepth_ros.parameters import SPECS, Settings
from fadepth_ros.pipeline import DEPTH, Pipeline

SECOND = 10**9

_shipped = functools.cache(Checkpoint)


def settings(**changes) -> Settings:
    """The default parameter values, with changes."""
    return Settings.from_values({spec.name: spec.default for spec in SPECS} | changes)


class RecordedOutputs:
    """Outputs of a pipeline that are recorded.

    Attributes:
        published: names of the outputs, in order.
        last: the last serialized message of each output.
    """

    def __init__(self, *subscribed):
        self.names, self.published, self.last = set(subscribed), [], {}

    def subscribed(self):
        return self.names

    def publish(self, output, message):
        self.published.append(output)
        self.last[output] = message

    def closed(self):
        return False

    def now(self):
        return 100 * SECOND

    @property
    def depth(self) -> np.ndarray:
        """[h, w], the last depth image."""
        message = deserialize_message(self.last[DEPTH], Image)
        return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


class FakeEngine:
    """Answers every frame with the same depth: 10 m in the top row to 1 m in the bottom row, times the request's scale.

    Attributes:
        calls: number of frames of each call of `infer` and `infer_batch`.
        requests: all requests, in order.
    """

    takes_network_size, follows_camera, batches, has_confidence = True, False, False, False
    backend_name, precision, description = "fake", "fp32", "fake fp32"
    failures, degraded, building = (), False, False

    def __init__(self, engine_settings, camera_size, _logger):
        self.checkpoint = _shipped()
        self.framing = Framing.plan(
            camera_size,
            engine_settings.network_size,
            engine_settings.crop_to_aspect,
            engine_settings.full_resolution,
        )
        self.calls, self.requests = [], []

    def infer(self, request):
        self.calls.append(1)
        return self._run(request)

    def infer_batch(self, requests):
        self.calls.append(len(requests))
        return [self._run(request) for request in requests]

    def depth_rows(self) -> np.ndarray:
        """[h], depth of each row at scale 1, metres."""
        return np.linspace(10.0, 1.0, self.framing.output_size[0])

    def _run(self, request):
        self.requests.append(request)
        rows = request.scale * self.depth_rows()
        depth = np.repeat(rows[:, None], self.framing.output_size[1], axis=1).astype(np.float32)
        if request.intrinsics is None:
            return DepthResult(depth, None, None).limited(request.limits)
        k = self.framing.output_intrinsics(request.intrinsics)
        points = None
        if request.points:
            with np.errstate(invalid="ignore"):  # infinite depth
                points = unproject(depth, k).astype(np.float32)
        return DepthResult(depth, points, k).limited(request.limits)


class FlatRoad(FakeEngine):
    """Answers with a flat road one metre below the camera of `info_message`, times the request's scale."""

    def depth_rows(self):
        k = self.framing.output_intrinsics(np.array(info_message().k).reshape(3, 3))
        below = np.arange(self.framing.output_size[0]) - k[1, 2]
        return np.where(below > 1, k[1, 1] / np.maximum(below, 1), np.inf)


class EngineLoader:
    """Builds engines of one kind and keeps them.

    Attributes:
        engines: those built so far, in order.
    """

    def __init__(self, kind=FakeEngine):
        self._kind = kind
        self.engines = []

    def __call__(self, *arguments):
        self.engines.append(self._kind(*arguments))
        return self.engines[-1]


def patient_pool(loader, retry_period=1000.0) -> EnginePool:
    """A pool of engines in which a frame of another size or with other settings waits for its engine, however busy the
    machine is."""
    return EnginePool(loader, retry_period, build_wait=PATIENCE, size_period=0.0, change_wait=PATIENCE)


def make_pipeline(
    outputs, loader=FakeEngine, retry_period=1000.0, camera_info=True, image_topic="image", **changes
) -> Pipeline:
    """A pipeline with `changes` of the default parameter values.

    Args:
        camera_info: whether it has received `info_message()`.
    """
    engines = patient_pool(loader, retry_period)
    pipeline = Pipeline(settings(**changes), outputs, logging.getLogger("test"), image_topic, engines=engines)
    if camera_info:
        pipeline.offer_camera_info(serialize_message(info_message()))
    return pipeline
