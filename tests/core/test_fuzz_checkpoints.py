"""Damaged checkpoints raise a CheckpointError of one line or can be used, cost little, and do no harm to good ones."""

from __future__ import annotations

import pytest

import fuzz
from fuzz_checkpoints import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_checkpoints_are_refused_or_usable_and_cost_little(target):
    report = fuzz.run(target, 1500)
    assert not report.escapes, report
    # Where most are refused, or none, nothing is tested.
    assert 0.005 * report.count < report.outcomes["accepted"] < 0.9 * report.count, report
    assert report.slowest[0] < 5.0, report
    assert report.largest[0] < 100.0, report
