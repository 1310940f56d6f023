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


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "kernel"),
    [(1, 1, 1, 3), (2, 1, 1, 3), (1, 2, 2, 3), (1, 2, 1, 5), (2, 0, 1, 4), (2, 3, 2, 3)],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_sum_of_shifted_images_is_its_depthwise_convolution(stride, padding, dilation, kernel, with_bias):
    x, weight = torch.randn(2, 6, 13, 10), torch.randn(6, 1, kernel, kernel)
    check(x, weight, torch.randn(6) if with_bias else None, stride, padding, dilation, 6)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_sum_over_channels_is_its_convolution(with_bias):
    check(torch.randn(2, 12, 5, 7), torch.randn(1, 12, 1, 1), torch.randn(1) if with_bias else None)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [(6, 1, 1, 0), (6, 1, 2, 0), (3, 3, 2, 1), (3, 3, 1, 0), (1, 5, 1, 2), (4, 1, 1, 1)],
)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_is_its_convolution(channels, kernel, stride, padding, with_bias, dtype):
    x, weight = torch.randn(2, channels, 9, 7), torch.randn(4, channels, kernel, kernel)
    check(x.to(dtype), weight.to(dtype), torch.randn(4).to(dtype) if with_bias else None, stride, padding)


def check(x, weight, bias, stride=1, padding=0, dilation=1, groups=1):
    found = convolution_as_arithmetic(x, weight, bias, 2 * [stride], [padding], (dilation, dilation), groups)
    bias = None if bias is None else bias.float()
    expected = F.conv2d(x.float(), weight.float(), bias, stride, padding, dilation, groups)
    assert found.dtype == x.dtype
    limit = 1e-5 if x.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found.float(), expected, rtol=limit, atol=limit)


@pytest.mark.parametrize(
    ("weight", "groups"),
    [
        (torch.zeros(8, 8, 3, 3), 1),  # dense
        (torch.zeros(8, 8, 1, 1), 1),  # 1×1 in float32
        (torch.zeros(16, 1, 3, 3), 8),  # a channel multiplier
        (torch.zeros(8, 2, 3, 3), 4),  # grouped
    ],
)
def test_other_convolutions_stay(weight, groups):
    assert convolution_as_arithmetic(torch.zeros(1, 8, 6, 6), weight, groups=groups) is NotImplemented


def test_a_dense_convolution_with_dilation_stays():
    x, weight = torch.zeros(1, 3, 9, 9).half(), torch.zeros(8, 3, 3, 3).half()
    assert convolution_as_arithmetic(x, weight, dilation=(2, 2)) is NotImplemented


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
