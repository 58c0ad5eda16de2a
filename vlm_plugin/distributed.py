"""Negatives from every process, with the gradient that one process on the whole batch would have.

Each rank computes its own rows of the score matrices: its images against every rank's anchors, and its anchors against
every rank's images. Gathered images carry gradient: the backward of the gather sums what all ranks ask of them and
hands each rank its own slice. DistributedDataParallel then averages over ranks, which gives exactly the gradient of
the mean over the whole batch. (A gather without gradient, or one whose backward keeps the local part alone, would
silently divide the loss's weight by the number of ranks.)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from vlm_plugin.features import Features


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Ranks in `group` (the default group when None); 1 when torch.distributed is not initialised.

    Raises:
        ValueError: this process is none of them.
    """
    size = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if size < 1:
        raise ValueError(f"process_group: expected one that rank {dist.get_rank()} belongs to, got another")
    return size


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's rank in `group`; 0 when torch.distributed is not initialised."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size(group))]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts)

    # Apart from `forward`: torch.func takes no other form.
    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, dist.ProcessGroup | None], output: Tensor) -> None:
        ctx.group = inputs[1]

    # A second derivative would be this rank's alone.
    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        # A copy: the reduction works in place, and others may hold the same gradient.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, op=dist.ReduceOp.SUM, group=ctx.group)
        return gradient.chunk(world_size(ctx.group))[rank(ctx.group)], None


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate `tensor` of every rank along the first axis, with gradient.

    Args:
        tensor: `(B, ...)`, the same shape on every rank.
        group: process group; the default one when None.

    Returns:
        `(W * B, ...)` in rank order; `tensor` itself with a single process.
    """
    if world_size(group) == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return _Gather.apply(tensor.to(torch.uint8), group).bool()
    return _Gather.apply(tensor, group)


def gather_features(
    features: Features, group: dist.ProcessGroup | None = None, *, local: bool = True, **given: bool
) -> Features:
    """Features of every rank, padded to the longest `local` of any rank.

    Args:
        features: this rank's.
        group: process group; the default one when None.
        local: False leaves the local vectors where they are, and the result without any: the pooled ones are a small
            part of what there is to send.
        **given: arguments by name, and whether this rank has them. Ranks must agree, or one would wait for ever for
            what the others do not send.

    Raises:
        ValueError: ranks hold batches of different sizes, or differ in what they were given.
    """
    if world_size(group) == 1:
        return features
    batch, size = features.mask.shape
    told = [batch, size, *given.values()]
    # The largest of each on any rank, and the least: one reduction, read at once, for each read waits for the device.
    extremes = torch.tensor([*told, *(-number for number in told)], device=features.mask.device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    most, least = extremes.view(2, -1).tolist()
    if most[0] != -least[0]:
        raise ValueError(
            f"expected the same batch size on every rank (drop_last=True in the loader), got {-least[0]} to {most[0]}"
        )
    for name, some, all_of_them in zip(given, most[2:], least[2:], strict=True):
        if some != -all_of_them:
            raise ValueError(f"{name}: expected on every rank or on none, got it on some")
    pooled = gather(features.pooled, group)
    if not local:
        rows = len(pooled)
        return Features(pooled.new_empty(rows, 0, pooled.shape[1]), pooled, features.mask.new_empty(rows, 0))
    missing = most[1] - size
    every_local = gather(F.pad(features.local, (0, 0, 0, missing)), group)
    return Features(every_local, pooled, gather(F.pad(features.mask, (0, missing)), group))
