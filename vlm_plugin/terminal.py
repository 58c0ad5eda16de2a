"""What all command lines share: paths as a user writes them, and output that no terminal refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_path(text: str) -> Path:
    """An argument that is a path: a shell leaves the ~ of --out=~/x as it is."""
    return Path(os.path.expanduser(text))


def name_or_path(text: str) -> str:
    """An argument that is a path or something else, which stays as it is."""
    return os.path.expanduser(text)


def check_outside(out: str | os.PathLike, data: str | os.PathLike, what: str = "folder") -> None:
    """Refuse to write among the pictures: they would be taken for more of them.

    Raises:
        ValueError: `out` is the folder `data` or lies in it.
    """
    inner, outer = Path(out).resolve(), Path(data).resolve()
    if inner == outer or outer in inner.parents:
        raise ValueError(f"--out {out}: expected a {what} outside of the data folder {data}, got one inside")


def escape_unprintable() -> None:
    """Let stdout and stderr escape what their encoding lacks: what is printed must not cost what was computed.

    File names that are no valid UTF-8 are in no encoding, captions and the table's signs not in every one.
    """
    for stream in (sys.stdout, sys.stderr):
        # What stands in for them, as in a notebook, may have no encoding at all.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
