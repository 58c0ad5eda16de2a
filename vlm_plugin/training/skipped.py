"""Pictures that cannot be used, and the list of those that a run left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from vlm_plugin import distributed
from vlm_plugin.data import Problem, Records, open_split
from vlm_plugin.data.records import BadSampleError, stop
from vlm_plugin.files import write_text
from vlm_plugin.training.ranks import progress


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
            write_text("".join(f"{name}\n" for name in sorted(self.names)), self.path)
