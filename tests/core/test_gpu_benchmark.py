"""benchmarks/gpu.py runs with the present engine; on a CPU with fewer candidates. No figure is tested."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import torch

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def test_a_form_of_the_graph_is_measured(monkeypatch):
    """Without a compiler, which needs a GPU."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    gpu = importlib.import_module("gpu")
    form, *_, median_difference, largest_difference, _start = gpu.measure_form("arithmetic", 2)
    assert form == "arithmetic"
    limit = 1e-2 if torch.cuda.is_available() else 1e-4
    assert float(median_difference) <= float(largest_difference) < limit


def test_the_gpu_benchmark_measures_without_a_failure(tmp_path):
    report = tmp_path / "gpu.md"
    options = ["--sections", "machine", "engine", "stream", "shares", "--frames", "2", "--out", report]
    subprocess.run([sys.executable, BENCHMARK, *options], check=True, stdout=subprocess.DEVNULL)
    text = report.read_text(encoding="utf-8")
    assert "Failed" not in text
    assert "not measured" not in text
    assert text.count("| 128x416 | 1 | torch fp32, ") == 2  # SmallDepth and ResNet-18
    assert "Skipped: no CUDA device." in text or "microseconds" in text
