"""Compiling with torch.compile. The compiler itself needs a GPU and is replaced by one that runs the graph as it is."""

from __future__ import annotations

import functools

import pytest
import torch

from fadepth_core.models import build_model
from fadepth_core.models.depth_network import DeployedNetwork
from fadepth_core.models.layers.depthwise_sum import DepthwiseSum, with_depthwise_sums
from fadepth_core.runtime.backends import inductor
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.graph import DepthGraph
from fadepth_core.runtime.network import load_network


class SmallNetwork(DeployedNetwork):
    """Two convolutions, one of them depthwise. Exporting a whole SmallDepth takes long."""

    def __init__(self) -> None:
        super().__init__(build_model("smalldepth"))
        self.convs = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1, groups=3), torch.nn.Conv2d(3, 1, 1))

    def maps(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return torch.sigmoid(self.convs(image)), []


@pytest.mark.parametrize("form", inductor.FORMS)
def test_every_form_computes_the_same(monkeypatch, form):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    graph = DepthGraph(SmallNetwork()).eval()
    inputs = graph.example_inputs((64, 96), 2)
    with torch.inference_mode():
        expected = graph(*inputs)[0]
        depth = inductor.compile_graph(graph, (64, 96), 2, form)(*inputs)[0]
    torch.testing.assert_close(depth, expected)


@pytest.mark.parametrize("form", ["sums", "arithmetic"])
def test_neighbouring_channels_of_a_depthwise_filter_are_neighbours_in_memory(monkeypatch, form):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    graph = DepthGraph(SmallNetwork()).eval()
    compiled = inductor.compile_graph(graph, (64, 96), 1, form)
    depthwise = next(weight for weight in compiled.parameters() if weight.shape == (3, 1, 3, 3))
    assert depthwise.permute(2, 3, 1, 0).is_contiguous()
    assert graph.network.convs[0].weight.is_contiguous()  # that of the caller is as before


def test_as_arithmetic_no_call_of_a_library_is_left(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    graph = DepthGraph(load_network(Checkpoint()), dtype=torch.float16).eval()
    compiled = inductor.compile_graph(graph, (64, 96), 1, "arithmetic")
    targets = {str(node.target) for node in compiled.graph.nodes}
    assert not [target for target in targets if "conv2d" in target or "upsample" in target]
    assert any("matmul" in target or "mm" in target for target in targets)


def test_a_process_compiles_any_number_of_graphs(monkeypatch):
    """A node has one for each camera size and batch; torch.compile gives up a code object after a number of compilations."""
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 1)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    graph = DepthGraph(SmallNetwork()).eval()
    for size, batch in (((64, 96), 1), ((64, 96), 2), ((96, 64), 1)):
        compiled = inductor.compile_graph(graph, size, batch)
        inputs = graph.example_inputs(size, batch)
        with torch.inference_mode():
            expected, depth = graph(*inputs)[0], compiled(*inputs)[0]
        assert depth.shape == (batch, *size)
        torch.testing.assert_close(depth, expected)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "kernel"), [(1, 1, 1, 3), (2, 1, 1, 3), (1, 2, 2, 3), (1, 2, 1, 5), (2, 0, 1, 4)]
)
def test_a_sum_is_its_depthwise_convolution(stride, padding, dilation, kernel):
    conv = torch.nn.Conv2d(6, 6, kernel, stride, padding, dilation=dilation, groups=6, bias=dilation == 1)
    image = torch.randn(2, 6, 13, 10)
    torch.testing.assert_close(DepthwiseSum(conv)(image), conv(image))
    assert DepthwiseSum(conv.half())(image.half()).dtype == torch.float16


def test_only_depthwise_convolutions_become_sums():
    conv = torch.nn.Conv2d(4, 8, 3, groups=4)  # a channel multiplier
    with pytest.raises(ValueError, match="not a depthwise convolution"):
        DepthwiseSum(conv)
    network = build_model("smalldepth").fuse()
    copied = with_depthwise_sums(network)
    assert not any(m.groups > 1 for m in copied.modules() if isinstance(m, torch.nn.Conv2d))
    assert any(m.groups > 1 for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(copied(image), network(image), rtol=1e-3, atol=1e-4)  # random weights amplify rounding
