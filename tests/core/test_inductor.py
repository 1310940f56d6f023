"""Compiling with torch.compile. The compiler itself needs a GPU and is replaced by one that runs the graph as it is."""

from __future__ import annotations

import functools

import torch

from fadepth_core.models import build_model
from fadepth_core.runtime.backends import inductor
from fadepth_core.runtime.graph import DepthGraph


def test_a_process_compiles_any_number_of_graphs(monkeypatch):
    """A node has one for each camera size and batch; torch.compile gives up a code object after a number of compilations."""
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 1)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    graph = DepthGraph(build_model("smalldepth").fuse()).eval()
    for size, batch in (((64, 96), 1), ((64, 96), 2), ((96, 64), 1)):
        compiled = inductor.compile_graph(graph, size, batch)
        inputs = graph.example_inputs(size, batch)
        with torch.inference_mode():
            expected, depth = graph(*inputs)[0], compiled(*inputs)[0]
        assert depth.shape == (batch, *size)
        torch.testing.assert_close(depth, expected)
