"""What every reader of a layout on disk returns."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Record(NamedTuple):
    """One picture and what is known about it."""

    key: str
    """Name within its data set, "<class>/<name>" where there are classes."""
    image: Path
    captions: tuple[str, ...]
    """At least one; the number of a caption is its position here."""
    class_id: int | None
    """Group whose members are no negatives of each other; None where the data set has no classes."""
    box: tuple[float, float, float, float] | None
    """The object's bounding box in pixels (x, y, width, height), (x, y) the upper left corner; None where unknown."""
