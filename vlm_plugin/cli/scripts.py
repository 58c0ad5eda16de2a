"""What the scripts of a checkout call: `python baselines/dfgan/main.py`, `python baselines/export.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from vlm_plugin.terminal import escape_unprintable, explain_missing


def train_command(name: str) -> None:
    """The command line of a baseline's main.py; what `vlm-plugin train NAME` does.

    Args:
        name: the baseline's.
    """
    with explain_missing(name):
        from vlm_plugin.gans.find import baseline
        from vlm_plugin.gans.run import run

        found = baseline(name)
    run(*found)


def export_command() -> None:
    """The command line of export.py: a run's folder, and the file to write."""
    with explain_missing("export"):
        from vlm_plugin.gans.export import export
    if len(sys.argv) != 3:
        sys.exit("usage: python baselines/export.py RUN FILE")
    escape_unprintable()
    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"export: {error}")
