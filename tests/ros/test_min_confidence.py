"""`depth/confidence` and the parameter `min_confidence`, without topics and without a network."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from cards import image_message, noise
from fadepth_ros.diagnostics import status_values
from fadepth_ros.pipeline import CONFIDENCE, DEPTH, POINTS
from fakes import SECOND, EngineLoader, FakeEngine, RecordedOutputs, make_pipeline, settings


class ConfidentEngine(FakeEngine):
    """Confidence falls from 1 in the left column to 0 in the right one."""

    has_confidence = True

    def infer(self, request):
        result = super().infer(request)
        if not request.confidence:
            return result
        row = np.linspace(1, 0, result.depth.shape[1], dtype=np.float32)
        return replace(result, confidence=np.tile(row, (result.depth.shape[0], 1)))


def frame(second):
    return serialize_message(image_message(noise(), "rgb8", second * SECOND))


@pytest.mark.parametrize(
    ("subscribed", "least", "asked"),
    [((DEPTH,), 0.0, False), ((DEPTH,), 0.5, True), ((DEPTH, CONFIDENCE), 0.0, True), ((CONFIDENCE,), 0.0, True)],
)
def test_confidence_is_computed_only_when_it_is_needed(subscribed, least, asked):
    outputs, loader = RecordedOutputs(*subscribed), EngineLoader(ConfidentEngine)
    make_pipeline(outputs, loader, min_confidence=least).offer_image(frame(1))
    assert [request.confidence for engine in loader.engines for request in engine.requests] == [asked]
    assert set(outputs.published) == set(subscribed)


def test_the_message_holds_the_confidence_of_each_pixel_of_depth():
    outputs = RecordedOutputs(DEPTH, CONFIDENCE)
    make_pipeline(outputs, ConfidentEngine, min_confidence=0.5).offer_image(frame(1))
    message = deserialize_message(outputs.last[CONFIDENCE], Image)
    depth = deserialize_message(outputs.last[DEPTH], Image)
    assert (message.encoding, message.header) == ("32FC1", depth.header)
    assert (message.height, message.width) == (depth.height, depth.width)
    confidence = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
    assert (confidence.min(), confidence.max()) == (0, 1)
    assert np.array_equal(np.isnan(outputs.depth), confidence < 0.5)


def test_unsure_points_are_removed_and_their_share_is_reported():
    outputs = RecordedOutputs(DEPTH, POINTS)
    pipeline = make_pipeline(outputs, ConfidentEngine, min_confidence=0.75)
    pipeline.offer_image(frame(1))
    assert np.isnan(outputs.depth).mean() == pytest.approx(0.75, abs=0.01)
    values = status_values(pipeline.statistics.report(), pipeline)
    assert float(values["pixels below min_confidence (%)"]) == pytest.approx(75, abs=1)
    pipeline.configure(settings())
    pipeline.offer_image(frame(2))
    assert np.isfinite(outputs.depth).all()
    assert "pixels below min_confidence (%)" not in status_values(pipeline.statistics.report(), pipeline)


@pytest.mark.parametrize(
    ("subscribed", "least", "text"),
    [
        ((DEPTH, CONFIDENCE), 0.0, "depth/confidence is not published"),
        ((DEPTH,), 0.5, "min_confidence has no effect"),
    ],
)
def test_a_checkpoint_without_the_head_is_reported(subscribed, least, text, caplog):
    caplog.set_level(logging.INFO)
    outputs = RecordedOutputs(*subscribed)
    pipeline = make_pipeline(outputs, FakeEngine, min_confidence=least)
    pipeline.offer_image(frame(1))
    assert set(outputs.published) == {DEPTH}
    assert np.isfinite(outputs.depth).all()
    assert f"the checkpoint has no confidence head; {text}" in caplog.text
    # A recorder of all topics is no problem; a parameter without effect is.
    assert ("confidence" in pipeline.statistics.report().errors) == (least > 0)
