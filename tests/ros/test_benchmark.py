"""benchmarks/node.py runs with the present node. No figure is tested."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "node.py"


@pytest.mark.parametrize("engine", ["pass-through", "real"])
def test_the_node_benchmark_measures_every_engine(engine):
    spec = importlib.util.spec_from_file_location("node_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    domain = int(os.environ["ROS_DOMAIN_ID"])
    figures = benchmark.measure(engine, "128x416", rate=30, seconds=0.1, domain=domain, warmup=0.0)
    assert figures["fps"] > 0
    assert figures["clouds"] > 0
    assert set(benchmark.COLUMNS) == set(figures)
