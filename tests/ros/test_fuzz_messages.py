"""Damaged messages raise MessageError or give a valid frame, cost little, and do no harm to the good ones after them."""

from __future__ import annotations

import pytest

import fuzz
from fadepth_core.messages.quiet_decoder import is_quiet
from fuzz_messages import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_messages_are_refused_or_valid_and_cost_little(target, capfd):
    report = fuzz.run(target, 1000)
    assert not report.escapes, report
    # Where most are refused, or none, nothing is tested.
    assert 0.02 * report.count < report.outcomes["accepted"] < 0.9 * report.count, report
    assert report.slowest[0] < 5.0, report
    assert report.largest[0] < 250.0, report
    assert not (capfd.readouterr().err and is_quiet())
