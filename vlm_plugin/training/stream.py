"""A resumable stream of samples, in which a position decides a sample."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlm_plugin import distributed
from vlm_plugin.checks import is_integer
from vlm_plugin.data.records import BadSampleError

# Samples drawn in the place of one that cannot be used.
_ATTEMPTS = 100


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block with torch's CPU randomness decided by `key` alone, and restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(*key))
        yield


def check_seed(seed: int) -> int:
    """The seed itself, from 0 to 2 ** 32 - 1: of more, `mix` would hear the lower bits alone.

    Raises:
        ValueError: no integer of that range.
    """
    if not is_integer(seed, 0) or seed >= 2**32:
        raise ValueError(f"seed: expected a number from 0 to {2**32 - 1}, got {seed!r}")
    return seed


def mix(*key: int) -> int:
    """One seed out of several integers."""
    value = 0x9E3779B97F4A7C15
    for part in key:
        value = ((value ^ (part & 0xFFFFFFFF)) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return value % 2**63


def noise(shape: tuple[int, ...], device: torch.device, *key: int) -> Tensor:
    """Standard normal values that depend on `shape` and `key` alone: the same on every device, with any history."""
    generator = torch.Generator().manual_seed(mix(*key))
    return torch.randn(shape, generator=generator, device="cpu").to(device)


class Stream(Dataset):
    """An endless shuffled sequence of samples in which position p is the same sample for ever.

    The order and each sample's augmentation depend on (seed, position) alone. So a resumed run sees what the
    uninterrupted one would have seen, and runs that differ in their loss see the same data, whatever the number of
    workers and whatever else draws random numbers.

    With `skip_bad`, a sample that cannot be used is left out: others are drawn in its place, decided by (seed,
    position, attempt) alone, and the one that can be used says for which it stands in (`Sample.skipped`).

    Args:
        dataset: the samples; their randomness must come from torch.
        seed: decides everything.
        skip_bad: leave out what raises `BadSampleError`.
    """

    def __init__(self, dataset: Dataset, seed: int, skip_bad: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self.skip_bad = skip_bad
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> object:
        """The sample at a position.

        Raises:
            BadSampleError: it cannot be used; with `skip_bad`, nor can the hundred drawn in its place.
        """
        skipped: list[str] = []
        try:
            return self._draw(position)
        except BadSampleError as error:
            if not self.skip_bad:
                raise
            skipped.append(error.where)
        for attempt in range(1, _ATTEMPTS + 1):
            with seeded(self.seed, position, 1, attempt):
                try:
                    return self.dataset[int(torch.randint(len(self.dataset), (), device="cpu"))].in_place_of(skipped)
                except BadSampleError as error:
                    skipped.append(error.where)
                    last = error
        raise last

    def _draw(self, position: int) -> object:
        epoch, offset = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._order = torch.randperm(len(self.dataset), generator=generator, device="cpu").tolist()
            self._epoch = epoch
        with seeded(self.seed, position, 1):
            return self.dataset[self._order[offset]]


def endless_batches(
    stream: Stream,
    batch: int,
    collate: Callable,
    *,
    first_step: int = 0,
    device: torch.device,
    workers: int | None = None,
) -> Iterator:
    """Batches from `first_step` on, for ever; each rank gets its own part of every global batch.

    Args:
        stream: the samples.
        batch: samples in a batch of one rank.
        collate: makes a batch of a list of samples.
        first_step: how many batches an interrupted run has already consumed.
        device: where training happens; memory is pinned for a GPU.
        workers: loader processes; 4 for a GPU when left out, none for a CPU, whose cores compute.

    Raises:
        BadSampleError: a sample cannot be used, and the stream leaves none out.
        ValueError: the stream leaves out what cannot be used, and hardly any sample can.
    """
    rank, world = distributed.rank(), distributed.world_size()
    if workers is None:
        workers = 4 if device.type == "cuda" else 0

    def positions() -> Iterator[list[int]]:
        step = first_step
        while True:
            start = (step * world + rank) * batch
            yield list(range(start, start + batch))
            step += 1

    loader = DataLoader(
        _Batches(stream, collate),
        sampler=positions(),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_outlive_signals,
    )
    for loaded in loader:
        if isinstance(loaded, BadSampleError):
            break
        yield loaded
    # The traceback would keep the loader's processes alive.
    del loader
    if stream.skip_bad:
        raise ValueError(f"expected one usable sample in {_ATTEMPTS}, found none; the last one: {loaded}")
    raise loaded


class _Batches(Dataset):
    """A batch for each list of a stream's positions, or what is wrong with one of its samples.

    That is returned and not raised: torch would put the traceback of a loader's process into its message.
    """

    def __init__(self, stream: Stream, collate: Callable) -> None:
        self.stream, self.collate = stream, collate

    def __getitem__(self, positions: list[int]) -> object:
        try:
            return self.collate([self.stream[position] for position in positions])
        except BadSampleError as error:
            return error


def _as_it_is(batch: object) -> object:
    return batch


def _outlive_signals(_: int) -> None:
    """A terminal sends Ctrl-C to the loaders as well, and torchrun, timeout and schedulers send SIGTERM to the whole
    group: loaders must outlive the step that the trainer still finishes. The trainer's own SIGTERM they heed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_parent, daemon=True).start()


def _heed_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
