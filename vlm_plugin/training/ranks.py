"""Several processes: joining, waiting, agreeing, and averaging gradients."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from vlm_plugin import distributed

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
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank; does nothing with a single process."""
    if distributed.world_size() > 1:
        dist.barrier()


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any rank says so, which all have to ask at the same time; `flag` itself with a single process.

    A signal reaches one rank a step before another: ranks that each heed their own would wait for one that is gone.
    """
    if distributed.world_size() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of every rank; does nothing with a single process.

    GAN losses run a network several times, and through its own gradient, before one backward: an explicit average after
    that backward does not depend on how DistributedDataParallel's hooks take this. Ranks start equal (same seed) and
    stay equal.
    """
    if distributed.world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= distributed.world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_all_ranks(names: Sequence[str]) -> list[str]:
    """The names that each rank gave, which all have to at the same time."""
    parts: list[Sequence[str]] = [names] * distributed.world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, names)
    return [name for part in parts for name in part]


def progress(iterable: Iterable, **options: object) -> tqdm:
    """A progress bar on the terminal of rank 0."""
    return tqdm(iterable, disable=distributed.rank() != 0, dynamic_ncols=True, mininterval=0.5, **options)
