"""What every trainer here shares: device, precision, ranks, a resumable data stream, run folders, logs, checkpoints."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import vlm_plugin
from vlm_plugin import distributed
from vlm_plugin.data import Problem, Record, Records, open_split
from vlm_plugin.data.records import BadSampleError, stop

# Samples drawn in the place of one that cannot be used.
_ATTEMPTS = 100
# How long ranks wait for one of them.
_PATIENCE = datetime.timedelta(hours=3)


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name`; without a name the GPU of this process where there is one, else the CPU.

    Raises:
        ValueError: no device has such a name, this one is not there, or it is neither a CPU nor a CUDA device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # Of torch's other kinds, some lack operations that are used here and some compute nothing.
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: expected cpu, cuda or cuda:NUMBER")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device {name}: this machine has no CUDA device that torch {torch.__version__} can use")
        number = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if number >= torch.cuda.device_count():
            raise ValueError(f"--device {name}: no CUDA device {number}, this machine has {torch.cuda.device_count()}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    return device


def choose_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """The autocast type called `name` ("float32", "bfloat16"); "auto" is bfloat16 where the hardware computes in it.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        # Emulated bfloat16 is many times slower than float32, so a CPU must say that it has the instructions.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if supported else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"precision: expected auto, float32 or bfloat16, got {name!r}")
    return getattr(torch, name)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype` on `device`; does nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


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


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block with torch's CPU randomness decided by `key` alone, and restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(*key))
        yield


def check_seed(seed: int) -> int:
    """The seed itself, from 0 to 2 ** 32 - 1: of more, `mix` would hear the lower bits alone.

    Raises:
        ValueError: out of that range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected a number from 0 to {2**32 - 1}, got {seed}")
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
    return torch.randn(shape, generator=generator).to(device)


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
                    return self.dataset[int(torch.randint(len(self.dataset), ()))].in_place_of(skipped)
                except BadSampleError as error:
                    skipped.append(error.where)
                    last = error
        raise last

    def _draw(self, position: int) -> object:
        epoch, offset = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self._epoch = epoch
        with seeded(self.seed, position, 1):
            return self.dataset[self._order[offset]]


def endless_batches(
    dataset: Dataset,
    batch: int,
    seed: int,
    collate: Callable,
    *,
    first_step: int = 0,
    device: torch.device,
    workers: int | None = None,
    skip_bad: bool = False,
) -> Iterator:
    """Batches from `first_step` on, for ever; each rank gets its own part of every global batch.

    Args:
        dataset: the samples.
        batch: samples in a batch of one rank.
        seed: decides order and augmentation.
        collate: makes a batch of a list of samples.
        first_step: how many batches an interrupted run has already consumed.
        device: where training happens; memory is pinned for a GPU.
        workers: loader processes; 4 for a GPU when left out, none for a CPU, whose cores compute.
        skip_bad: leave out samples that cannot be used, see `Stream`.

    Raises:
        BadSampleError: a sample cannot be used, and `skip_bad` is off.
        ValueError: with `skip_bad`, hardly any sample can be used.
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
        _Batches(Stream(dataset, seed, skip_bad), collate),
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
    if skip_bad:
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


def open_records(data: str | os.PathLike, split: str, skip_bad: bool) -> tuple[Records, list[str]]:
    """One split of a data folder, and what was left out because nothing can be read of it: files, with lines.

    Args:
        data: the data folder.
        split: name of the split.
        skip_bad: leave out pictures with which something is wrong; else the first is an error.

    Raises:
        BadSampleError: something is wrong with one picture, and `skip_bad` is off; or with every one.
        FileNotFoundError, ValueError: something is wrong with the folder, see `open_split`.
    """
    left_out: list[Problem] = []

    def complain(problem: Problem) -> None:
        if not (skip_bad and problem.picture):
            stop(problem)
        elif problem.fatal:
            left_out.append(problem)

    records = open_split(data, split, complain)
    if not records:
        raise left_out[0].error()
    return records, [problem.where for problem in left_out]


def usable_indices(
    dataset: Dataset, skip_bad: bool, among: Sequence[int] | None = None, enough: int | None = None
) -> tuple[list[int], list[str]]:
    """Which samples can be used, and the files and keys of those left out because they cannot be.

    Each sample is loaded to find out, and let go: a split may be larger than the memory.

    Args:
        dataset: the samples.
        skip_bad: leave out what cannot be used.
        among: which samples, in this order; all when left out.
        enough: look at no more once this many can be used.

    Raises:
        BadSampleError: a sample cannot be used, and `skip_bad` is off.
        ValueError: no sample can be used.
    """
    among = range(len(dataset)) if among is None else among
    indices, skipped = [], []
    for index in progress(among, total=enough, desc="looking at pictures", leave=False, delay=2):
        if len(indices) == enough:
            break
        try:
            dataset[index]
            indices.append(index)
        except BadSampleError as error:
            if not skip_bad:
                raise
            skipped.append(error.where)
            last = error
    if not indices:
        raise ValueError(f"expected one usable sample in {len(among)}, found none; the last one: {last}")
    return indices, skipped


def from_all_ranks(names: Sequence[str]) -> list[str]:
    """The names that each rank gave, which all have to at the same time."""
    parts: list[Sequence[str]] = [names] * distributed.world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, names)
    return [name for part in parts for name in part]


class LeftOut:
    """Files and keys of the samples that a run left out; rank 0 lists them in a text file, one a line, sorted.

    Args:
        path: the file, made when there is something to list.
        keep: go on with what the file lists already; False for a new run, which begins with none.

    Attributes:
        names: what was left out so far.
    """

    def __init__(self, path: str | os.PathLike, *, keep: bool) -> None:
        self.path = Path(path)
        if not keep and distributed.rank() == 0:
            self.path.unlink(missing_ok=True)
        text = self.path.read_bytes().decode("utf-8", "surrogatepass") if keep and self.path.is_file() else ""
        self.names = set(text.split("\n")) - {""}

    def add(self, names: Iterable[str]) -> None:
        """Take note of more."""
        if new := set(names) - self.names:
            self.names |= new
            self._write()

    def move(self, old: Path, new: Path) -> None:
        """List what lies in one folder as lying in another, so that a picture of moved data is listed once."""
        names = {f"{new}{n.removeprefix(str(old))}" if n.startswith(f"{old}{os.sep}") else n for n in self.names}
        if names != self.names:
            self.names = names
            self._write()

    def report(self) -> None:
        """Say on rank 0 how many were left out, if any."""
        if self.names and distributed.rank() == 0:
            pictures = "picture" if len(self.names) == 1 else "pictures"
            print(f"left out {len(self.names)} unusable {pictures}: see {self.path}", flush=True)

    def _write(self) -> None:
        if distributed.rank() == 0:
            _write_text("".join(f"{name}\n" for name in sorted(self.names)), self.path)


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


def progress(iterable: Iterable, **options: object) -> tqdm:
    """A progress bar on the terminal of rank 0."""
    return tqdm(iterable, disable=distributed.rank() != 0, dynamic_ncols=True, mininterval=0.5, **options)


def ramp(step: int, start: int, length: int) -> float:
    """0 up to step `start`, then a straight line to 1 over `length` steps."""
    if length <= 0:
        return float(step > start)
    return min(max((step - start) / length, 0.0), 1.0)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an exponential moving average of weights towards `network`; buffers are copied."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


def new_run_folder(root: str | os.PathLike, name: str) -> Path:
    """Make `root/00000-name`, numbered after the last one there."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(m[1]) for p in root.iterdir() if (m := re.match(r"(\d{5,})-", p.name))), default=-1)
    while True:
        folder = root / f"{number:05d}-{name}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run took the number in between
            number += 1


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run's folder meanwhile, where the system can.

    Raises:
        ValueError: one does already.
    """
    if fcntl is None:
        yield
        return
    # The folder itself: a file within it would be one more, and one that is renamed takes its lock along.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process trains this run; stop it first") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def shared_run_folder(root: str | os.PathLike, name: str) -> Path:
    """`new_run_folder`, made by rank 0 and told to every rank."""
    folder = [new_run_folder(root, name) if distributed.rank() == 0 else None]
    if distributed.world_size() > 1:
        dist.broadcast_object_list(folder, src=0)
    return folder[0]


class StopSignal:
    """Notices SIGTERM and Ctrl-C inside a `with` block, so that a run ends after its step, with a checkpoint.

    Attributes:
        asked: a signal came.
    """

    _signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self._former = {number: signal.signal(number, self._ask) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, *_: object) -> None:
        # A second signal does what it would have done without us.
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def check_writable(path: str | os.PathLike) -> None:
    """Find out before any work whether a file can be written: its folder is made, and an empty file beside it is tried.

    Raises:
        OSError: it cannot; the message names the file.
    """
    path = Path(path)
    # The name under which files here are written before they are renamed.
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("ab").close()
        temporary.unlink()
    except OSError as error:
        raise OSError(f"{path}: expected a file that can be written, got {error}") from error


def write_json(content: object, path: str | os.PathLike) -> None:
    """Indented JSON, written beside and renamed."""
    # Captions and file names may hold lone surrogates: a backslash escape is JSON's own way to write one.
    _write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", Path(path), "backslashreplace")


def _write_text(text: str, path: Path, errors: str = "surrogatepass") -> None:
    temporary = path.with_name(path.name + ".part")
    # File names that are no valid UTF-8 arrive with lone surrogates.
    temporary.write_bytes(text.encode("utf-8", errors))
    os.replace(temporary, path)


def digest(lines: Iterable[str]) -> str:
    """Names the text of pictures, captions or words, for telling apart what lies in places of one name."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest_records(records: Iterable[Record]) -> str:
    """Names the keys and captions of pictures, in their order; not the pixels, which would all have to be read."""
    return digest(line for record in records for line in (record.key, *record.captions))


def versions() -> dict[str, str]:
    """What a number depends on besides the code's input."""
    return {
        "vlm_plugin": vlm_plugin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


class Log:
    """One JSON object a line; resuming cuts off the lines that the checkpoint does not know.

    Args:
        path: the file.
        first_step: lines of this step and later are dropped.
    """

    def __init__(self, path: str | os.PathLike, first_step: int = 0) -> None:
        self.path = Path(path)
        if distributed.rank() == 0:
            kept = [row for row in self.read(self.path) if row["step"] < first_step]
            _write_text("".join(json.dumps(row) + "\n" for row in kept), self.path)

    def add(self, **values: object) -> None:
        """Append a line; tensors become numbers."""
        if distributed.rank() == 0:
            row = {k: float(v) if isinstance(v, Tensor) else v for k, v in values.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict]:
        """Every whole line written so far; none without a file."""
        if not Path(path).is_file():
            return []
        rows = []
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            # A kill may leave half a line at the end.
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows
