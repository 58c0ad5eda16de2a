"""The command line: `vlm-plugin`, also `python -m vlm_plugin`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vlm_plugin import __version__
from vlm_plugin.tools import data, evaluate, judge, legacy, patch, pretrain, report, score

COMMANDS = {
    "pretrain": (pretrain, "train a matcher on captioned pictures"),
    "data": (data, "make data sets, check your own"),
    "evaluate": (evaluate, "compute every number about a generator, with a report"),
    "report": (report, "the report of one evaluated run, or of several side by side"),
    "score": (score, "score pictures of any generator against their captions"),
    "judge": (judge, "train the attribute classifier of the synthetic birds"),
    "run-legacy": (legacy, "run an original's script, unedited, on today's Python and torch"),
    "patch": (patch, "put the loss into a clone of an original trainer"),
}


def parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
    root = argparse.ArgumentParser(
        prog="vlm-plugin", description="Dual vision-language matching for text-to-image GANs"
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True)
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(
            name, help=description, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line on stderr and exit status 2."""
    arguments = parser().parse_args(argv)
    try:
        _check_one_process(arguments.command)
        return arguments.run(arguments) or 0
    except (ValueError, TypeError, OSError) as error:
        print(f"vlm-plugin {arguments.command}: {error}", file=sys.stderr)
        return 2


def _check_one_process(command: str) -> None:
    """Several processes would each do all the work and overwrite each other's files."""
    world = os.environ.get("WORLD_SIZE", "1")
    # An original's script may well join ranks by itself.
    if world != "1" and command != "run-legacy":
        raise ValueError(f"expected one process: start it without torchrun, got WORLD_SIZE {world}")
