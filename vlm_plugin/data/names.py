"""Names that an index gives, found among those that the disk has, however their accents are composed.

A Mac stores an accent behind its letter (NFD), most other programs write both as one character (NFC): the same name to
the eye, two to a file system.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def composed(name: str) -> str:
    """What names share that look the same: composed, and without the blanks that a table leaves around them."""
    return unicodedata.normalize("NFC", name).strip()


class Alike:
    """Finds names in a list.

    Args:
        names: those that are there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        # The first of several that look the same: which one does not depend on the disk's order.
        self._alike = {composed(name): name for name in sorted(self._names, reverse=True)}

    def find(self, name: str) -> str | None:
        """The name as it is there: exactly this one, else one that looks the same; None if there is neither."""
        return name if name in self._names else self._alike.get(composed(name))


class NamesOnDisk:
    """Finds files below a folder. Folders are listed once, and only for names that could be written in another way.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[str, Alike] = {}

    def find(self, name: str) -> str:
        """A path within the folder as the disk has it, its parts separated by "/"; as it came where it is not there."""
        if name.isascii() and name == name.strip() and " /" not in name and "/ " not in name:
            return name
        found = ""
        for part in name.split("/"):
            found += f"{self._list(found).find(part) or part}/"
        return found[:-1]

    def _list(self, within: str) -> Alike:
        if within not in self._listed:
            try:
                self._listed[within] = Alike(os.listdir(self._root / within))
            except OSError:  # not there, or closed: whoever opens the file says so
                self._listed[within] = Alike(())
        return self._listed[within]
