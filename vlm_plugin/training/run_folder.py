"""A run's folder: its number, its log, its lock, and signals that end the run."""

from __future__ import annotations

import contextlib
import json
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
from vlm_plugin.files import write_text

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
        path: the file.
        first_step: lines of this step and later are dropped.
    """

    def __init__(self, path: str | os.PathLike, first_step: int = 0) -> None:
        self.path = Path(path)
        if distributed.rank() == 0:
            kept = [row for row in self.read(self.path) if row["step"] < first_step]
            write_text("".join(json.dumps(row) + "\n" for row in kept), self.path)

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
