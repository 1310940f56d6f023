"""Each decomposition computes what the operation computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fadepth_core.runtime.decompositions import (
    bilinear_as_gather,
    convolution_as_arithmetic,
    relu_in_channels_last,
)

DEPTHWISE = [(6, 6, kernel, 6) for kernel in (3, 5, 4)]
DENSE = [(3, 8, 3, 1), (1, 5, 3, 1), (12, 1, 1, 1)]


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 0, 1), (2, 3, 2)])
@pytest.mark.parametrize(("inputs", "outputs", "kernel", "groups"), [*DEPTHWISE, *DENSE])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_sum_is_its_convolution(inputs, outputs, kernel, groups, stride, padding, dilation, with_bias):
    x, weight = torch.randn(2, inputs, 13, 10), torch.randn(outputs, inputs // groups, kernel, kernel)
    bias = torch.randn(outputs) if with_bias else None
    geometry = (2 * [stride], [padding], (dilation, dilation), groups)  # one number stands for both directions
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    found = convolution_as_arithmetic(x, weight, bias, *geometry)
    if kernel == 1 and (padding or stride > 1):
        assert found is NotImplemented
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        half = convolution_as_arithmetic(x.half(), weight.half(), None if bias is None else bias.half(), *geometry)
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_is_its_convolution(stride, with_bias, dtype):
    x, weight = torch.randn(2, 6, 5, 7).to(dtype), torch.randn(4, 6, 1, 1).to(dtype)
    bias = torch.randn(4).to(dtype) if with_bias else None
    found = convolution_as_arithmetic(x, weight, bias, [stride, stride])
    expected = F.conv2d(x.float(), weight.float(), None if bias is None else bias.float(), stride)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("weight", "groups"),
    [
        (torch.zeros(8, 8, 3, 3), 1),  # dense
        (torch.zeros(8, 8, 1, 1), 1),  # a product in float32
        (torch.zeros(16, 1, 3, 3), 8),  # a channel multiplier
        (torch.zeros(8, 2, 3, 3), 4),  # grouped
    ],
)
def test_other_convolutions_stay(weight, groups):
    assert convolution_as_arithmetic(torch.zeros(1, 8, 6, 6), weight, groups=groups) is NotImplemented


@pytest.mark.parametrize("size", [(26, 20), (13, 20), (7, 31), (13, 10)])
def test_a_gather_is_its_interpolation(size):
    x = torch.randn(2, 3, 13, 10)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(bilinear_as_gather(x, size, False), expected, rtol=1e-5, atol=1e-5)
    assert bilinear_as_gather(x, size, True) is NotImplemented


def test_a_relu_in_channels_last_is_a_relu():
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(relu_in_channels_last(x), F.relu(x))
    assert relu_in_channels_last(x[0]) is NotImplemented
