"""Several processes: joining, waiting, agreeing, and averaging gradients."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from vlm_plugin import distributed
from vlm_plugin.training.failures import stop_listening

# How long ranks wait for one of them.
_PATIENCE = datetime.timedelta(hours=3)


def join_ranks(device: torch.device) -> None:
    """Join the other processes when started by torchrun; does nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # The first rank makes tables and pictures while the others wait: with NCCL ten minutes, unless told otherwise.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)


def leave_ranks() -> None:
    """Wait for every rank and part from them; does nothing with a single process."""
    if distributed.world_size() > 1:
        dist.barrier()
        stop_listening()
        # The store goes with rank 0: none of the others may still listen.
        dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank; does nothing with a single process."""
    if distributed.world_size() > 1:
        dist.barrier()


def on_any_rank(flag: bool, other: Tensor) -> tuple[bool, Tensor]:
    """Whether any rank says so, which all have to ask at the same time; what came with a single process.

    A signal reaches one rank a step before another: ranks that each heed their own would wait for one that is gone.

    Args:
        flag: of the host.
        other: `()` bool on the device, which stays there.
    """
    if distributed.world_size() == 1:
        return flag, other
    flags = torch.stack([torch.tensor(flag, device=other.device), other]).int()
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags[0]), flags[1].bool()


def average_gradients(parameters: Iterable[nn.Parameter], told: Tensor) -> Tensor:
    """Average the gradients of every rank, and numbers beside them; does nothing with a single process.

    GAN losses run a network several times, and through its own gradient, before one backward: an explicit average after
    that backward does not depend on how DistributedDataParallel's hooks take this. Ranks start equal (same seed) and
    stay equal.

    Args:
        parameters: those without a gradient are passed over, on every rank the same.
        told: `(K,)` numbers of this rank, as many on every rank.

    Returns:
        `told`, averaged.
    """
    if distributed.world_size() == 1:
        return told
    # What is told goes with the gradients: a reduction of its own would cost as much as a short one does.
    parts = [*(p.grad for p in parameters if p.grad is not None), told.clone()]
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    flat /= distributed.world_size()
    for part, averaged in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(averaged.view_as(part))
    return parts[-1]


def from_all_ranks(names: Sequence[str]) -> list[str]:
    """The names that each rank gave, which all have to at the same time."""
    parts: list[Sequence[str]] = [names] * distributed.world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, names)
    return [name for part in parts for name in part]


def progress(iterable: Iterable, **options: object) -> tqdm:
    """A progress bar on the terminal of rank 0."""
    return tqdm(iterable, disable=distributed.rank() != 0, dynamic_ncols=True, mininterval=0.5, **options)
