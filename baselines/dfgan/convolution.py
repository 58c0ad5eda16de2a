"""Convolutions with a double backward that is no slower than their backward, for gradient penalties.

When a gradient by the input is itself differentiated by the weights, torch convolves the pictures with a kernel as
large as the pictures, 256 x 256 for the first layer of a discriminator, which no library is made for. With the first
gradient written as a transposed convolution, the second one is an ordinary gradient of that. The numbers are the same.
The observation is that of StyleGAN2-ADA's `conv2d_gradfix`; benchmarks/cost/penalty.py measures what it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PenaltyConvolutions(TorchFunctionMode):
    """While it is on, 2-d convolutions are fast to differentiate twice, and have gradients by their input alone.

    Once it is off they have all their gradients. So a forward pass and a gradient by the pictures go inside, and the
    `backward` of a loss made of both outside. Convolutions with groups or dilation, with padding given by name, or
    under autocast stay torch's own.

    Attributes:
        inputs_alone: it is on.
    """

    inputs_alone = False

    def __enter__(self) -> PenaltyConvolutions:
        """On."""
        self.inputs_alone = True
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """Off."""
        self.inputs_alone = False
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Replace `conv2d`, call everything else."""
        given = _geometry(*args, **(kwargs or {})) if func is F.conv2d else None
        return func(*args, **(kwargs or {})) if given is None else _Convolution.apply(self, *given)


# Named as conv2d's own, which can be given by name.
def _geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int], tuple[int, int]] | None:
    """The arguments of `_Convolution`, None where it cannot stand in."""
    plain = groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str) and input.dim() == 4
    if not plain or torch.is_autocast_enabled(input.device.type):
        return None
    return input, weight, bias, _pair(stride), _pair(padding)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        mode: PenaltyConvolutions,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.mode, ctx.stride, ctx.padding = mode, stride, padding
        return F.conv2d(inputs, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        by_inputs = by_weight = by_bias = None
        if ctx.needs_input_grad[1]:
            # Rows and columns at the end that no step of the stride reached.
            sizes = zip(inputs.shape[2:], weight.shape[2:], ctx.stride, ctx.padding, strict=True)
            left = [(side + 2 * pad - kernel) % step for side, kernel, step, pad in sizes]
            by_inputs = F.conv_transpose2d(gradient, weight, None, ctx.stride, ctx.padding, left)
        # Autograd would ask for these in a gradient by the pictures alone too.
        if not ctx.mode.inputs_alone:
            if ctx.needs_input_grad[2]:
                by_weight = torch.ops.aten.convolution_backward(
                    gradient, inputs, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1,
                    (False, True, False),
                )[1]  # fmt: skip
            if ctx.needs_input_grad[3]:
                by_bias = gradient.sum((0, 2, 3))
        return None, by_inputs, by_weight, by_bias, None, None
