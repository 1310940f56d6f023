"""benchmarks/node.py runs with the present node. No figure is tested."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "node.py"


DOMAIN = int(os.environ["ROS_DOMAIN_ID"])


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("node_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("engine", ["pass-through", "real"])
def test_the_node_benchmark_measures_every_engine(benchmark, engine):
    figures = benchmark.measure(engine, "128x416", rate=30, seconds=0.1, domain=DOMAIN, warmup=0.0)
    assert figures["fps"] > 0
    assert figures["clouds"] > 0
    assert set(benchmark.COLUMNS) == set(figures)


@pytest.mark.slow
def test_the_node_benchmark_measures_a_node_without_listeners(benchmark):
    figures = benchmark.measure_idle("128x416", rate=30, seconds=0.1, domain=DOMAIN, lazy=True, warmup=0.0, listeners=1)
    assert len(figures["subscribed"]) == len(figures["first depth"]) == 1
    assert 0 < figures["subscribed"][0] <= figures["first depth"][0]
    assert {"cpu node", "cpu camera", "MB/s"} < set(figures)
