"""What every reader of a layout on disk returns, and how it says what is wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import eq
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from vlm_plugin.files import digest


class Record(NamedTuple):
    """One picture and what is known about it."""

    key: str
    """Its path within the data set without extension, "<class>/<name>" where there are classes; no two are equal."""
    image: Path
    captions: tuple[str, ...]
    """At least one; the number of a caption is its position here."""
    class_id: int | None
    """Group whose members are no negatives of each other; None where the data set has no classes."""
    box: tuple[float, float, float, float] | None
    """The object's bounding box in pixels (x, y, width, height), (x, y) the upper left corner; None where unknown."""


class BadSampleError(ValueError):
    """A sample that cannot be used, through no fault of the program: training may leave it out and go on.

    Attributes:
        where: the picture's file, or its captions' file or its key where these are to blame.
    """

    where: str = ""


class MissingPictureError(FileNotFoundError, BadSampleError):
    """A picture, or the file of its captions, that is not there."""


def bad(where: object, what: str, kind: type[BadSampleError] = BadSampleError) -> BadSampleError:
    """The error that says so."""
    # One argument and an attribute: so the error survives pickling, and torch can make it anew in the main process.
    error = kind(f"{where}: {what}")
    error.where = str(where)
    return error


class Problem(NamedTuple):
    """Something wrong with a data folder."""

    where: str
    """The file, with the line where there are lines."""
    what: str
    """What was expected and what came."""
    missing: bool = False
    """The file is not there."""
    fatal: bool = True
    """Training cannot use it."""
    picture: bool = False
    """One picture alone is left out where reading goes on."""
    spoken: bool = False
    """Whoever trains should read it too, though it is not fatal: pictures are left out, or not divided as one may
    think."""

    def error(self) -> Exception:
        """The problem as an exception: FileNotFoundError if a file is missing, else ValueError; of one picture a
        BadSampleError besides."""
        if self.picture:
            return bad(self.where, self.what, MissingPictureError if self.missing else BadSampleError)
        return (FileNotFoundError if self.missing else ValueError)(f"{self.where}: {self.what}")


# What a reader calls with each problem. If the call returns, the reader leaves out what the problem is about (nothing,
# where it is not fatal) and goes on.
Complain = Callable[[Problem], None]


def stop(problem: Problem) -> None:
    """Raises on the first fatal problem, warns of what is to be spoken, and lets the others pass: what readers do
    unless told otherwise.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: anything else.
    """
    if problem.fatal:
        raise problem.error()
    if problem.spoken:
        warnings.warn(f"{problem.where}: {problem.what}", stacklevel=2)


class Layout(NamedTuple):
    """How to recognise one layout on disk, list its splits and read one."""

    looks_like: str
    """A few words for messages."""
    recognise: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    """Names of the splits, out of "train", "validation" and "test" where they are those."""
    read: Callable[[Path, str, Complain], Iterable[Record]]


class Records(Sequence[Record]):
    """Records packed into a few arrays, so that loader processes share them instead of copying 120,000 Python objects.

    Indexing makes a `Record`, a slice makes `Records`.

    Args:
        records: any number of records.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        keys, images, captions, counts = _Texts(), _Texts(), _Texts(), [0]
        classes: list[int] = []
        has_class: list[bool] = []
        boxes: list[tuple[float, float, float, float]] = []
        for record in records:
            keys.add(record.key)
            images.add(str(record.image))
            for caption in record.captions:
                captions.add(caption)
            counts.append(len(record.captions))
            classes.append(record.class_id or 0)
            has_class.append(record.class_id is not None)
            boxes.append(record.box or (math.nan,) * 4)
        self._keys, self._images, self._captions = keys.packed(), images.packed(), captions.packed()
        self._first_caption = np.cumsum(counts, dtype=np.int64)
        self._classes = np.array(classes, dtype=np.int64)
        self._has_class = np.array(has_class, dtype=bool)
        self._boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self._classes)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        """A record, or the records of a slice."""
        if isinstance(index, slice):
            return Records(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected one of {len(self)} records, got {index}")
        index %= len(self)
        box = None if math.isnan(self._boxes[index, 0]) else tuple(self._boxes[index].tolist())
        return Record(
            key=self._keys[index],
            image=Path(self._images[index]),
            captions=tuple(
                self._captions[i] for i in range(self._first_caption[index], self._first_caption[index + 1])
            ),
            class_id=int(self._classes[index]) if self._has_class[index] else None,
            box=box,
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether both hold equal records in the same order."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None

    def __repr__(self) -> str:
        return f"Records({len(self)} pictures, {self._first_caption[-1]} captions)"


class _Packed:
    """Strings as one run of bytes and where each begins."""

    def __init__(self, content: bytes, begins: Sequence[int]) -> None:
        self._content = np.frombuffer(content, dtype=np.uint8)
        self._begins = np.array(begins, dtype=np.int64)

    def __getitem__(self, index: int) -> str:
        return self._content[self._begins[index] : self._begins[index + 1]].tobytes().decode("utf-8", "surrogatepass")


class _Texts:
    """Collects strings for `_Packed`."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._begins = [0]

    def add(self, text: str) -> None:
        # File names that are no valid UTF-8 arrive with lone surrogates.
        self._content += text.encode("utf-8", "surrogatepass")
        self._begins.append(len(self._content))

    def packed(self) -> _Packed:
        return _Packed(bytes(self._content), self._begins)


def digest_records(records: Iterable[Record]) -> str:
    """Names the keys and captions of pictures, in their order; not the pixels, which would all have to be read."""
    return digest(line for record in records for line in (record.key, *record.captions))


def nothing_to_learn(records: Iterable[Record]) -> str | None:
    """Why no picture of a split has a wrong caption, where that is so: then nothing can be learned or measured on it.

    Captions that differ in case or white space alone are equal. A sound split is known by its first few records.

    Args:
        records: those of a split that can be used.

    Returns:
        A sentence without a full stop, "expected ..., got ..."; None where some picture has a wrong caption.
    """
    number, first, said, one_class, one_text = 0, None, frozenset(), True, True
    for record in records:
        number += 1
        texts = frozenset(" ".join(caption.casefold().split()) for caption in record.captions)
        if first is None:
            first, said = record, texts
            continue
        # Without classes every picture is one of its own.
        one_class = one_class and record.class_id is not None and record.class_id == first.class_id
        one_text = one_text and texts == said
        if not one_class and not one_text:
            return None
    if number < 2:
        return f"expected two pictures or more, got {number or 'none'}"
    if one_class:
        return f"expected pictures of two classes or more, got {number} of the one class {first.class_id}"
    shown = first.captions[0] if first.captions else ""
    return f"expected captions that tell pictures apart, got the same for all {number} (such as {shown!r:.80})"
