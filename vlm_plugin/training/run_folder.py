"""A run's folder: its number, its log, its lock, and signals that end the run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import vlm_plugin
from vlm_plugin import distributed
from vlm_plugin.files import digest, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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
        _lock(handle, f"{folder}: another process trains this run; stop it first")
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def only_writer(path: Path, doing: str) -> Iterator[None]:
    """Keep other processes from doing the same to a file or folder meanwhile, where the system can.

    A hidden file beside the file, or in the folder, holds the lock; a kill ends the lock and may leave that file, which
    is in nobody's way.

    Args:
        path: a file that need not exist, or a folder.
        doing: what is done to it, for the message.

    Raises:
        ValueError: one does already.
    """
    name = path / ".lock" if path.is_dir() else path.with_name(f".{digest([path.name])}.lock")
    handle = None if fcntl is None else _open_lock(name, f"{path}: another process is {doing}; wait, or stop it first")
    try:
        yield
    finally:
        if handle is not None:
            # While the lock is held: whoever opened the file meanwhile finds it gone, and makes another.
            with contextlib.suppress(OSError):
                name.unlink()
            os.close(handle)


def _open_lock(name: Path, otherwise: str) -> int | None:
    """A locked file of that name; None where none can be made, which is somebody else's to say."""
    while True:
        try:
            handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            _lock(handle, otherwise)
            if name.exists() and os.path.samestat(os.fstat(handle), os.stat(name)):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one before took its file away in between


def _lock(handle: int, otherwise: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(otherwise) from None
    except OSError:
        pass  # a file system without locks


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
        number: the signal's; 0 where none came.
    """

    _signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked, self.number = False, 0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self._former = {number: signal.signal(number, self._ask) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, *_: object) -> None:
        # A second signal does what it would have done without us.
        self.asked, self.number = True, number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """What a number depends on besides the code's input."""
    import torchvision  # not at the top: it takes longer to import than torch

    return {
        "vlm_plugin": vlm_plugin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


class Log:
    """One JSON object a line; resuming cuts off the lines that the checkpoint does not know.

    Args:
        path: the file. Its lines that are damaged are passed over, and rank 0 says once how many.
        first_step: lines of this step and later are dropped.
    """

    def __init__(self, path: str | os.PathLike, first_step: int = 0) -> None:
        self.path = Path(path)
        if distributed.rank() == 0:
            rows, damaged = _read_rows(self.path)
            if damaged:
                lines = f"{damaged} damaged line{'' if damaged == 1 else 's'}"
                print(f"{self.path}: passed over {lines}, which the curves will lack", flush=True)
            kept = [row for row in rows if row["step"] < first_step]
            write_text("".join(json.dumps(row) + "\n" for row in kept), self.path)

    def add(self, **values: object) -> None:
        """Append a line; tensors become numbers."""
        if distributed.rank() == 0:
            row = {k: float(v) if isinstance(v, Tensor) else v for k, v in values.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict]:
        """Every whole line written so far, each with a number as its `step`; none without a file."""
        return _read_rows(Path(path))[0]


def _read_rows(path: Path) -> tuple[list[dict], int]:
    """Rows of a log, and how many lines are damaged besides; a last half line is what a kill leaves, and no damage."""
    if not path.is_file():
        return [], 0
    *lines, last = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines if line.strip()]
    ending = _row(last)
    whole = [row for row in [*rows, ending] if row is not None]
    return whole, sum(row is None for row in rows)


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of a thousand digits, a thousand brackets
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) in (int, float) and math.isfinite(step) else None
