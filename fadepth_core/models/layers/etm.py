"""Equivalent transformation module, ETM (FA-Depth section III-B, eq. 13-19).

In training, the kernel of one convolution is the sum of several kernels, called branches: identity, K×1, 1×K, a K×K
kernel whose elements are dropped at random ("dropconv"), and the standard K×K kernel. Each branch is divided by its
standard deviation and multiplied by a learned factor. All branches except the standard one are dropped at random. The
input is convolved once, with the sum. For deployment, `reparameterize` returns a plain `nn.Conv2d` with the summed
kernel. Details: docs/method.md, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.models.layers.drop import ScheduledRate
from fadepth_core.models.layers.module_list import ModuleList

_EPS = 1e-5
#: Sum of the factors that `load_kernel` gives to all branches except the standard one.
_LOADED_SHARE = 0.1


@dataclass(frozen=True)
class ETMConfig:
    """Hyper-parameters of the ETM (Table VII).

    Args:
        branch_drop: p_b, maximum probability that a whole branch is dropped; scheduled by eq. 5.
        element_drop: p_e, probability that one weight of the dropconv branch is dropped (eq. 14).
        dropconv: whether the dropconv branch exists; without it this is the paper's ETM*.
        dropconv_scale: α, coefficient of the dropconv branch (third number of Table VII).
        init_from_largest: start every smaller kernel from the centred crop of the largest one (the paper's ETM#).
        all_shapes: use every odd shape up to K×K instead of only K×1 and 1×K.
        variance: "weight" divides γ by the standard deviation of the branch's weights, "none" uses γ alone.
        constant_rate: keep the rate at p_b from the first iteration, instead of the schedule of eq. 5.

    Raises:
        ValueError: `variance` is unknown, or a probability is outside [0, 1).
    """

    branch_drop: float = 0.1
    element_drop: float = 0.1
    dropconv: bool = True
    dropconv_scale: float = 1.0
    init_from_largest: bool = False
    all_shapes: bool = False
    variance: str = "weight"
    constant_rate: bool = False

    def __post_init__(self) -> None:
        if self.variance not in ("weight", "none"):
            raise ValueError(f"ETM variance must be 'weight' or 'none', got '{self.variance}'")
        if not 0.0 <= self.element_drop < 1.0:
            raise ValueError(f"ETM element_drop must lie in [0, 1), got {self.element_drop}")
        if not 0.0 <= self.branch_drop < 1.0:
            raise ValueError(f"ETM branch_drop must lie in [0, 1), got {self.branch_drop}")


_BASE = ETMConfig()
#: The variants of section III-B, by the names in the paper's tables.
ETM_VARIANTS: dict[str, ETMConfig] = {
    "etm": _BASE,
    "etm*": replace(_BASE, dropconv=False),
    "etm#": replace(_BASE, init_from_largest=True),
}


def etm_config(etm: str | ETMConfig | Mapping | None) -> ETMConfig | None:
    """The config given by the name of a variant ("etm", "etm*", "etm#"), a config, a mapping of its fields, or None.

    Raises:
        ValueError: the variant or a field is unknown, or a field has the wrong type or is out of range.
    """
    if etm is None or isinstance(etm, ETMConfig):
        return etm
    if isinstance(etm, Mapping):
        return ETMConfig(**{name: _checked_field(name, value) for name, value in etm.items()})
    if etm not in ETM_VARIANTS:
        raise ValueError(f"unknown ETM variant '{etm}'; known variants: {', '.join(ETM_VARIANTS)}")
    return ETM_VARIANTS[etm]


def _checked_field(name: str, value: Any) -> Any:
    """`value`, checked as field `name` of an `ETMConfig`. A float field also takes an int, as in JSON."""
    known = [field.name for field in fields(ETMConfig)]
    if name not in known:
        raise ValueError(f"unknown ETM option '{name}'; known options: {', '.join(known)}")
    kind = type(getattr(_BASE, name))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"ETM option '{name}' must be of type {kind.__name__}, got {value!r}")
    return value


#: Random factors of one branch: b_t / (1 - p_b), and M / (1 - p_e) or None.
_Mask = tuple[Tensor | float, Tensor | None]


class _Branch(nn.Module):
    """One kernel W_t with its scale γ_t. With `shape` None it is the identity branch, whose kernel is constant."""

    gamma: Tensor

    def __init__(
        self,
        shape: tuple[int, int] | None,
        out_channels: int,
        fan_in_channels: int,
        variance: str,
        coefficient: float = 1.0,
        droppable: bool = True,
        element_drop: float = 0.0,
    ):
        super().__init__()
        self.shape = shape
        self.coefficient = coefficient
        self.droppable = droppable
        self.element_drop = element_drop
        self.fan_in = 0 if shape is None else fan_in_channels * shape[0] * shape[1]
        # A kernel of one weight and the constant identity have no variance.
        self.normalised = variance == "weight" and self.fan_in > 1
        if shape is not None:
            self.weight = nn.Parameter(torch.empty(out_channels, fan_in_channels, *shape))
        self.gamma = nn.Parameter(torch.ones(out_channels))

    def deviation(self) -> Tensor | float:
        """sqrt(var_t + ε) per output channel, [Co, 1, 1, 1]; 1 if the branch is not normalised.

        Depthwise kernels use the mean square instead of the variance, because the variance of only three numbers is too
        noisy (docs/method.md, section 2.3).
        """
        if not self.normalised:
            return 1.0
        dims = (1, 2, 3)
        if self.weight.shape[1] == 1:
            var = self.weight.square().mean(dims, keepdim=True)
        else:
            var = self.weight.var(dims, unbiased=False, keepdim=True)
        return torch.sqrt(var + _EPS)

    @torch.no_grad()
    def reset_gamma(self) -> None:
        """Set γ to the deviation, so that every branch has factor 1."""
        deviation = self.deviation()
        self.gamma.copy_(deviation.flatten() if isinstance(deviation, Tensor) else torch.ones_like(self.gamma))

    def kernel(self, identity: Tensor, element_mask: Tensor | None = None) -> Tensor:
        """α_t · γ_t / sqrt(var_t + ε) ⊙ W̃_t (eq. 15d without the branch's Bernoulli factor)."""
        weight = identity if self.shape is None else self.weight
        if element_mask is not None:
            weight = weight * element_mask
        return weight * (self.coefficient * self.gamma[:, None, None, None] / self.deviation())


class ETMConv2d(nn.Module):
    """Replacement of `nn.Conv2d` whose kernel is the sum of several kernels in training.

    Args:
        padding: zeros (above and below, left and right). None keeps the size at stride 1 for odd kernels; even kernels
            lose one row and one column.

    Shapes: as `nn.Conv2d`; without `padding` [B, Ci, H, W] -> [B, Co, ceil(H / s), ceil(W / s)] for odd kernels.
    """

    identity: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        config: ETMConfig = _BASE,
        padding: tuple[int, int] | None = None,
    ):
        super().__init__()
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (kh, kw)
        self.stride, self.dilation, self.groups, self.config = stride, dilation, groups, config
        self.padding = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2) if padding is None else padding
        fan_in = in_channels // groups

        def branch(shape: tuple[int, int] | None, **options: Any) -> _Branch:
            return _Branch(shape, out_channels, fan_in, config.variance, **options)

        branches = [branch(None)] if in_channels == out_channels else []
        branches += [branch(shape) for shape in self._small_shapes(kh, kw, config.all_shapes)]
        if config.dropconv:
            branches.append(branch((kh, kw), coefficient=config.dropconv_scale, element_drop=config.element_drop))
        branches.append(branch((kh, kw), droppable=False))
        self.branches = ModuleList(branches)
        self.branch_rate = ScheduledRate(config.branch_drop, config.constant_rate)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("identity", self._identity_kernel(), persistent=False)
        self.reset_parameters()

    @staticmethod
    def _small_shapes(kh: int, kw: int, all_shapes: bool) -> list[tuple[int, int]]:
        if all_shapes:
            shapes = [(h, w) for h in range(1, kh + 1, 2) for w in range(1, kw + 1, 2)]
        else:
            shapes = [(kh, 1), (1, kw)]
        return [shape for shape in dict.fromkeys(shapes) if shape != (kh, kw)]

    def _identity_kernel(self) -> Tensor:
        kernel = torch.zeros(self.out_channels, self.in_channels // self.groups, 1, 1)
        # Output channel o of group g reads input g·(Ci/groups) + (o mod Ci/groups), which is o itself when Ci = Co.
        index = torch.arange(self.out_channels)
        kernel[index, index % kernel.shape[1]] = 1.0
        return kernel

    def reset_parameters(self) -> None:
        largest = self.branches[-1]
        nn.init.kaiming_normal_(largest.weight, nonlinearity="linear" if self.bias is not None else "relu")
        for branch in self.branches:
            if branch.shape is None or branch is largest:
                continue
            if self.config.init_from_largest:
                with torch.no_grad():
                    branch.weight.copy_(centre_crop(largest.weight, branch.shape))
            else:
                nn.init.normal_(branch.weight, std=largest.weight.detach().std().item())
        for branch in self.branches:
            branch.reset_gamma()
            if self.bias is not None:
                # With a bias, no BatchNorm follows that normalises the sum, so start from the mean of the branches.
                with torch.no_grad():
                    branch.gamma.div_(len(self.branches))

    @torch.no_grad()
    def load_kernel(self, kernel: Tensor) -> None:
        """Set the branches so that the merged kernel equals `kernel` [Co, Ci/g, Kh, Kw].

        The branches that can be dropped get a small part of `kernel`, so that dropping them changes the output little.
        The standard branch, which is never dropped, gets the rest.
        """
        *others, standard = self.branches
        for branch in others:
            if branch.shape is not None:
                branch.weight.copy_(centre_crop(kernel, branch.shape))
            branch.reset_gamma()
            branch.gamma.mul_(_LOADED_SHARE / len(others))
        parts = (_centre_pad(branch.kernel(self.identity), self.kernel_size) for branch in others)
        standard.weight.copy_(kernel - sum(parts, torch.zeros_like(kernel)))
        standard.reset_gamma()

    def sample_masks(self) -> list[_Mask]:
        """Draw the random factors of one training step, used for the whole batch, which has one merged kernel (eq. 16).

        Returns:
            For each branch: the factor of the branch b_t / (1 - p_b), and the factors of its elements M / (1 - p_e), of
            the kernel's shape, or None.
        """
        masks: list[_Mask] = []
        rate = self.branch_rate.rate
        for branch in self.branches:
            keep: Tensor | float = 1.0
            if branch.droppable and rate > 0.0:
                keep = torch.empty((), device=branch.gamma.device, dtype=branch.gamma.dtype).bernoulli_(1 - rate)
                keep = keep / (1 - rate)
            elements = None
            if branch.element_drop > 0.0:
                elements = torch.empty_like(branch.weight).bernoulli_(1 - branch.element_drop)
                elements = elements / (1 - branch.element_drop)
            masks.append((keep, elements))
        return masks

    def branch_kernels(self, masks: list[_Mask] | None = None) -> list[Tensor]:
        """Kernels Ŵ_t of the branches (eq. 15d), each in its own shape. Without `masks` nothing is dropped (eq. 18)."""
        masks = masks or [(1.0, None)] * len(self.branches)
        return [
            keep * branch.kernel(self.identity, elements)
            for branch, (keep, elements) in zip(self.branches, masks, strict=True)
        ]

    def merged_kernel(self, masks: list[_Mask] | None = None) -> Tensor:
        """Σ_t Z(Ŵ_t) (eq. 16 and 18), [Co, Ci/g, Kh, Kw]: smaller kernels are centred and padded with zeros."""
        first, *others = (_centre_pad(kernel, self.kernel_size) for kernel in self.branch_kernels(masks))
        return sum(others, first)

    def forward(self, x: Tensor) -> Tensor:
        # Inside `drop.shared_masks`, all passes use the masks of the first pass.
        masks = self.branch_rate.draw_mask("etm", self.sample_masks) if self.training else None
        kernel = self.merged_kernel(masks)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def reparameterize(self) -> nn.Conv2d:
        """The equivalent plain convolution (eq. 18, 19)."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
        )
        kernel = self.merged_kernel()
        conv.to(device=kernel.device, dtype=kernel.dtype)
        conv.weight.copy_(kernel)
        if self.bias is not None and conv.bias is not None:
            conv.bias.copy_(self.bias)
        return conv


def convert_to_etm(module: nn.Module, config: ETMConfig, keep_kernels: bool) -> None:
    """Replace every convolution larger than 1×1 inside `module` by an ETM, in place (Table VI: ETM in other networks).

    Args:
        keep_kernels: start from a merged kernel equal to the replaced one (for ImageNet weights) instead of a random
            one.

    Raises:
        ValueError: a convolution's padding is not a fixed number of zeros, or its strides or dilations differ between
            rows and columns.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and max(child.kernel_size) > 1:
                setattr(parent, name, _etm_of(child, config, keep_kernels))


@torch.no_grad()
def _etm_of(conv: nn.Conv2d, config: ETMConfig, keep_kernel: bool) -> ETMConv2d:
    """The ETM that replaces `conv`; see `convert_to_etm`."""
    # Subclasses of Conv2d are refused, because they may pad in `forward`, as timm's Conv2dSame does.
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"only convolutions that pad with fixed numbers of zeros can become an ETM, not {conv}")
    (stride, other_stride), (dilation, other_dilation) = conv.stride, conv.dilation
    (kh, kw), (rows, columns) = conv.kernel_size, conv.padding
    if stride != other_stride or dilation != other_dilation:
        raise ValueError(f"an ETM has one stride and one dilation for both axes, unlike {conv}")
    etm = ETMConv2d(
        conv.in_channels,
        conv.out_channels,
        (kh, kw),
        stride,
        dilation,
        conv.groups,
        bias=conv.bias is not None,
        config=config,
        padding=(rows, columns),
    ).to(conv.weight)
    if keep_kernel:
        etm.load_kernel(conv.weight)
        if conv.bias is not None and etm.bias is not None:
            etm.bias.copy_(conv.bias)
    return etm


def _centre_offsets(small: Sequence[int], large: Sequence[int]) -> tuple[int, int]:
    """Row and column at which a kernel of size `small` starts if it is centred in one of size `large`."""
    # The centre index is floor((K-1)/2), also for even kernels. This follows from the limits of the sums in eq. 13.
    return (large[0] - 1) // 2 - (small[0] - 1) // 2, (large[1] - 1) // 2 - (small[1] - 1) // 2


def _centre_pad(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """Z of eq. 16: the kernel centred in a larger one of zeros, [Co, Ci/g, *shape]."""
    small = kernel.shape[-2:]
    top, left = _centre_offsets(small, shape)
    return F.pad(kernel, (left, shape[1] - small[1] - left, top, shape[0] - small[0] - top))


def centre_crop(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """The centre of a kernel, [Co, Ci/g, *shape]."""
    top, left = _centre_offsets(shape, kernel.shape[-2:])
    return kernel[:, :, top : top + shape[0], left : left + shape[1]]
