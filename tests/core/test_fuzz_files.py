"""Damaged JSON, YAML and tables are refused in one documented error or give valid values, and cost little."""

from __future__ import annotations

import pytest

import fuzz
from fuzz_files import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_refused_or_valid_and_cost_little(target):
    report = fuzz.run(target, 400)
    assert not report.escapes, report
    # Where most are refused, or none, nothing is tested.
    assert 0.02 * report.count < report.outcomes["accepted"] < 0.9 * report.count, report
    assert report.slowest[0] < 5.0, report
    assert report.largest[0] < 250.0, report
