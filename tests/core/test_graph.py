"""The deployment graph: geometry, REP-117 values, and the exported file against PyTorch at several sizes."""

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.graph import DepthGraph, ShapeCarriedGraph, resize_to_network


class FixedDisparity(nn.Module):
    """Stands in for a network: the disparity of a given depth for every image."""

    min_depth, max_depth, confidence = 0.1, 100.0, None

    def __init__(self, depth):
        super().__init__()
        self.x = ((1 / depth - 1 / self.max_depth) / (1 / self.min_depth - 1 / self.max_depth))[None, None]

    def forward(self, image):
        return self.x


def run(graph, image, k, scale=1.0, limits=(0.0, np.inf)):
    with torch.no_grad():
        depth, points, *_ = graph(
            torch.from_numpy(image),
            torch.as_tensor(k, dtype=torch.float32),
            torch.tensor([scale]),
            torch.tensor(limits),
        )
    return depth.numpy(), points.numpy()


def plane_depth(framing, k_camera, normal, offset):
    """Depth [h, w] at the network's size of the plane n·X = d; `k_camera`: K of the camera's frames."""
    h, w = framing.network_size
    v, u = np.mgrid[0:h, 0:w]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(framing.network_intrinsics(k_camera)).T
    return torch.tensor(offset / (rays @ normal), dtype=torch.float32)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("full_resolution", [False, True])
def test_points_of_a_plane_lie_on_it(full_resolution, crop):
    framing = Framing.plan((360, 640), (128, 256), crop, full_resolution)
    k = np.array([[500.0, 0, 300], [0, 510, 200], [0, 0, 1]])
    normal, offset = np.array([0.1, -0.2, 1.0]), 8.0
    graph = DepthGraph(FixedDisparity(plane_depth(framing, k, normal, offset)), framing)
    image = np.zeros((360, 640, 3), np.uint8)
    depth, points = run(graph, image, framing.output_intrinsics(k))
    assert depth.shape == framing.output_size
    # The disparity of a plane is linear in pixel coordinates, so its interpolation is exact except at the border.
    inside = points[2:-2, 2:-2]
    assert np.abs(inside @ normal - offset).max() < 2e-4 * offset


def test_depth_outside_the_limits_is_infinite_and_has_no_points():
    depth = torch.tensor([[0.5, 2.0], [5.0, 50.0]]).repeat_interleave(16, 0).repeat_interleave(16, 1)
    graph = DepthGraph(FixedDisparity(depth))
    out, points = run(graph, np.zeros((32, 32, 3), np.uint8), np.eye(3), limits=(1.0, 20.0))
    corners = out[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, [-np.inf, 2.0, 5.0, np.inf], rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(points), np.repeat(~np.isfinite(out)[..., None], 3, -1))


def test_scale_multiplies_depth_before_the_limits():
    graph = DepthGraph(FixedDisparity(torch.full((32, 32), 4.0)))
    out, points = run(graph, np.zeros((32, 32, 3), np.uint8), np.eye(3), scale=2.5, limits=(1.0, 20.0))
    np.testing.assert_allclose(out, 10.0, rtol=1e-4)
    np.testing.assert_allclose(points[..., 2], 10.0, rtol=1e-4)
    assert run(graph, np.zeros((32, 32, 3), np.uint8), np.eye(3), scale=6.0, limits=(1.0, 20.0))[0].min() == np.inf


@pytest.mark.parametrize("size", [(480, 640), (720, 1280), (375, 1242), (130, 420), (100, 300)])
@pytest.mark.parametrize("crop", [False, True])
def test_resize_in_the_graph_equals_resize_on_the_host(size, crop):
    framing = Framing.plan(size, (128, 416) if crop else None, crop)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    host = framing.to_network(image).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    graph = resize_to_network(tensor, framing)[0].permute(1, 2, 0).numpy()
    # OpenCV rounds to whole grey levels after each of its two steps.
    assert np.abs(host - graph).max() <= 1.6


@pytest.mark.parametrize(("size", "output"), [((128, 416), (128, 416)), ((192, 256), (480, 640)), ((64, 96), (64, 96))])
def test_exported_file_equals_pytorch_at_every_size(checkpoint, network, size, output):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    k = np.array([[210.0, 0, 0.5 * output[1]], [0, 200, 0.5 * output[0]], [0, 0, 1]], np.float32)
    inputs = [image, k, np.array([1.3], np.float32), np.array([0.2, 40.0], np.float32), np.zeros(output, np.uint8)]
    with torch.no_grad():
        depth, points, *_ = ShapeCarriedGraph(network)(*map(torch.from_numpy, inputs))
        framing = Framing(size, (0, 0, *size), size, output)
        static = DepthGraph(network, framing)(*map(torch.from_numpy, inputs[:4]))
    assert torch.equal(depth, static[0]), "both forms of the graph compute the same"
    assert torch.equal(points.nan_to_num(), static[1].nan_to_num())

    core = ov.Core()
    model = core.read_model(checkpoint.onnx_path)
    model.reshape({"image": [*size, 3], "intrinsics": [3, 3], "scale": [1], "limits": [2], "output_grid": list(output)})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled(inputs)
    finite = np.isfinite(depth.numpy()) & np.isfinite(result["depth"])
    assert (np.isfinite(depth.numpy()) == np.isfinite(result["depth"])).mean() > 0.999, (
        "depths at the limits may round differently"
    )
    np.testing.assert_allclose(result["depth"][finite], depth.numpy()[finite], rtol=2e-4)
    np.testing.assert_allclose(result["points"][finite], points.numpy()[finite], rtol=2e-4, atol=1e-4)
