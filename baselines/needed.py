"""Says in one line which package the scripts here lack, and where; needs none itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def explain_missing(script: str) -> Iterator[None]:
    """Import in this block what a bare Python does not have.

    Args:
        script: begins the message.

    Raises:
        SystemExit: a package is missing; the message names it, the environment and what to install.
    """
    try:
        yield
    except ImportError as error:
        # This package's own advice on an extra stands on what is missing.
        missing = error.__cause__ or error
        if not isinstance(missing, ModuleNotFoundError):
            raise
        sys.exit(f'{script}: {missing} in the environment {sys.prefix}: in the repository: pip install ".[train]"')
