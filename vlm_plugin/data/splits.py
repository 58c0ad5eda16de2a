"""The splits of a data folder, whatever its layout, and the test split that is made where there is none."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlm_plugin.data.encoding import AS_LATIN_1, foreign
from vlm_plugin.data.layouts import find_layout
from vlm_plugin.data.records import Complain, Problem, Records, stop

# Of the train split, one picture in so many serves as a test split where there is none.
_MADE_SHARE = 10


def open_split(root: str | Path, split: str, complain: Complain = stop) -> Records:
    """Reads one split of a data folder, whichever known layout it has.

    Nothing is written to the folder. Without a test split, about a tenth of the train split serves as one: the pictures
    whose name (the last part of the key) has a SHA-256 digest that, as a number, is divisible by ten. That depends
    neither on order nor on machine, and adding pictures moves no other from one split to the other.

    Args:
        root: the data folder.
        split: name of the split, such as "train" or "test".
        complain: called with each problem of the split; by default the first fatal one is raised.

    Returns:
        The split's pictures in the order of the data set.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: the folder has no known layout (the message lists them), no such split, no pictures in it, or a
            file's content is not what was expected.
    """
    root = Path(root)
    layout = find_layout(root)
    own = layout.splits(root)
    made = "test" not in own and split in ("train", "test")
    if split not in own and not made:
        raise ValueError(f"split: expected one of {root}'s ({', '.join(list_splits(root))}), got {split!r}")
    told: list[Problem] = []

    def tell(problem: Problem) -> None:
        told.append(problem)
        complain(problem)

    records = Records(layout.read(root, "train" if made else split, tell))
    if made:
        in_test = _held_out([record.key for record in records])
        records = Records(r for r, chosen in zip(records, in_test, strict=True) if chosen == (split == "test"))
        if others := [name for name in own if name != "train"]:
            what = (
                f"found {' and '.join(others)} but no test split: a tenth of train, chosen by name, is the test split"
            )
            complain(Problem(str(root), f"expected a test split, {what}", fatal=False, spoken=True))
    if any(problem.what.endswith(AS_LATIN_1) for problem in told) and (where := _foreign(records)) is not None:
        what = f"expected UTF-8, got captions of another encoding, such as {where!r:.80}: save the files as UTF-8"
        complain(Problem(str(root), what))
    if not records and not any(problem.fatal for problem in told):
        complain(Problem(str(root), f"expected at least one picture in the split {split}, found none"))
    return records


def list_splits(root: str | Path) -> list[str]:
    """Names of the splits that `open_split` can read, sorted.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or it has no known layout.
    """
    own = find_layout(root).splits(Path(root))
    return sorted({*own, "test"})


def _foreign(records: Records) -> str | None:
    """A caption that shows what `vlm_plugin.data.encoding.decode` could not tell from the few words of its file."""
    captions = (caption for record in records for caption in record.captions if not caption.isascii())
    content = b"\n".join(caption.encode("latin-1") for caption in captions if max(caption) <= "\xff")
    where = foreign(content)
    return None if where is None else content[where:].split(b"\n")[0].decode("latin-1")


def _held_out(keys: list[str]) -> list[bool]:
    """Which pictures go to a test split that the data lack, see `open_split`."""
    numbers = [int(hashlib.sha256(_name(key).encode("utf-8", "surrogatepass")).hexdigest(), 16) for key in keys]
    chosen = [number % _MADE_SHARE == 0 for number in numbers]
    if len(keys) > 1 and len(set(chosen)) == 1:
        # A handful of pictures, or all of one name: neither split may be empty.
        first = min(range(len(keys)), key=lambda i: (numbers[i], keys[i]))
        chosen = [i == first for i in range(len(keys))]
    return chosen


def _name(key: str) -> str:
    return key.rsplit("/", 1)[-1]
