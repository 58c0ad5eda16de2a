"""What all command lines share: paths as a user writes them, missing packages, and output that no terminal refuses.

The scripts import it before anything is known to be installed: it needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
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
    # Not resolve(), which raises at a link that leads around.
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(data))
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


@contextlib.contextmanager
def explain_missing(program: str, extra: str = "train", status: int = 1) -> Iterator[None]:
    """Import in this block what a bare Python does not have.

    Args:
        program: begins the message.
        extra: brings the packages, as in `pip install ".[train]"`.
        status: exit status when one is missing.

    Raises:
        SystemExit: a package is missing; one line on stderr names it, the environment and what to install.
    """
    try:
        yield
    except ImportError as error:
        # This package's own advice on an extra stands on what is missing.
        missing = error.__cause__ or error
        if not isinstance(missing, ModuleNotFoundError):
            raise
        advice = f'in the repository: pip install ".[{extra}]"'
        print(f"{program}: {missing} in the environment {sys.prefix}: {advice}", file=sys.stderr)
        sys.exit(status)
