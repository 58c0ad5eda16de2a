"""The penalty's convolutions against torch's own: values, gradients, second gradients, and the kernels asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from fill import wave
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cost.penalty import main
from vlm_plugin.baselines.dfgan import losses
from vlm_plugin.baselines.dfgan.convolution import PenaltyConvolutions
from vlm_plugin.baselines.dfgan.losses import discriminator_loss, discriminator_terms, matching_aware_gradient_penalty
from vlm_plugin.baselines.dfgan.networks import ConditionalHead, Discriminator

# Kernel, stride, padding and side: those of the discriminator, and steps that leave rows over.
GEOMETRIES = [
    (3, 1, 1, 6),
    (4, 2, 1, 8),
    (1, 1, 0, 5),
    (4, 1, 0, 4),
    (3, 2, 1, 8),
    (2, 3, 0, 7),
    ((3, 2), (2, 1), (0, 1), 7),
]


def tensors(kernel: int | tuple[int, int], side: int) -> tuple[Tensor, Tensor, Tensor]:
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    inputs, weight = wave(2, 3, side, side + 1, phase=1).double(), wave(4, 3, height, width, phase=2).double()
    return inputs.requires_grad_(), weight.requires_grad_(), wave(4, phase=3).double().requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "side"), GEOMETRIES)
def test_it_is_the_same_convolution(kernel, stride, padding, side: int, bias: bool) -> None:
    inputs, weight, shift = tensors(kernel, side)
    wanted = (inputs, weight, shift) if bias else (inputs, weight)

    def convolve(inputs: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
        with PenaltyConvolutions():
            return F.conv2d(inputs, weight, shift, stride, padding)

    own, other = convolve(*wanted), F.conv2d(*wanted, stride=stride, padding=padding)
    torch.testing.assert_close(own, other)
    assert is_ours(own)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), wanted) for y in (own, other)), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(convolve, wanted)
    assert torch.autograd.gradgradcheck(convolve, wanted)


def test_what_it_cannot_do_stays_torchs_own() -> None:
    inputs, weight, _ = tensors(3, 8)
    with PenaltyConvolutions():
        own = [
            F.conv2d(inputs, weight[:3, :1], groups=3),
            F.conv2d(inputs, weight, dilation=2),
            F.conv2d(inputs, weight, padding="same"),
            F.conv2d(inputs[0], weight),
        ]
        with torch.autocast("cpu", torch.bfloat16):
            own.append(F.conv2d(inputs.float(), weight.float()))
        replaced = F.conv2d(inputs, weight)
    assert [tuple(y.shape[-3:]) for y in own] == [(3, 6, 7), (4, 4, 5), (4, 8, 9), (4, 6, 7), (4, 6, 7)]
    assert own[-1].dtype == torch.bfloat16
    assert not any(is_ours(y) for y in own)
    assert is_ours(replaced)
    assert not is_ours(F.conv2d(inputs, weight))


def is_ours(y: Tensor) -> bool:
    """Somewhere in its graph is a convolution of PenaltyConvolutions."""
    nodes = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "_ConvolutionBackward":
            return True
        nodes += [before for before, _ in node.next_functions if before is not None]
    return False


def test_inside_there_are_gradients_by_the_input_alone() -> None:
    inputs, weight, shift = tensors(3, 6)
    with PenaltyConvolutions():
        y = F.conv2d(inputs, weight, shift).sum()
        by_inputs, by_weight, by_shift = torch.autograd.grad(
            y, (inputs, weight, shift), retain_graph=True, allow_unused=True
        )
    assert by_inputs.abs().sum() > 0
    assert by_weight is by_shift is None
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(y, (inputs, weight, shift)))


class Kernels(TorchDispatchMode):
    """Keeps the largest side of a kernel that pictures were convolved with."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket == torch.ops.aten.convolution:
            self.largest = max(self.largest, *args[1].shape[2:])
        return func(*args, **(kwargs or {}))


def step_of(size: int, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """One loss of the discriminator as it is trained; gives its parts and the weights' gradients."""
    torch.manual_seed(0)
    discriminator, head = Discriminator(2, size).to(dtype), ConditionalHead(2, 6).to(dtype)
    for block in discriminator.DBlocks:
        nn.init.constant_(block.gamma, 0.5)
    real, fake, sentence = (wave(*s, phase=p).to(dtype) for p, s in enumerate(((3, 3, size, size),) * 2 + ((3, 6),)))
    weights = [p for network in (discriminator, head) for p in network.parameters() if p.requires_grad]

    def step() -> list[Tensor]:
        terms = discriminator_terms(discriminator, head, real, fake, sentence)
        loss = discriminator_loss(terms.real, terms.fake, terms.mismatched) + 1000 * terms.penalty
        alone = matching_aware_gradient_penalty(discriminator, head, real, sentence)
        return [*terms, *torch.autograd.grad(loss, weights), alone, *torch.autograd.grad(alone, weights)]

    return step


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_benchmark(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "16", "--nf", "2", "--batch", "2", "--rounds", "1", "--device", device])
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[1:4] == ["16", "2", "2"]
    assert float(row[-1]) > 0


def test_the_penalty_is_torchs_own_without_its_large_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(32, torch.float64)
    with Kernels() as kernels:
        own = step()
    assert kernels.largest == 4
    monkeypatch.setattr(losses, "PenaltyConvolutions", nullcontext)
    with Kernels() as kernels:
        other = step()
    assert kernels.largest == 32
    assert own[3] > 0
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
