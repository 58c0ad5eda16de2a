"""The command line: `vlm-plugin`, also `python -m vlm_plugin`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vlm_plugin import __version__
from vlm_plugin.files import tidy_end
from vlm_plugin.terminal import escape_unprintable, explain_missing


class Command(NamedTuple):
    """A command, and where it is."""

    module: str
    """Of `vlm_plugin.cli`."""
    description: str
    """What it does."""
    extra: str = "eval"
    """Brings the packages that it needs beside those of the drop-in."""
    processes: bool = False
    """torchrun may start several of it."""


COMMANDS = {
    "train": Command("train", "train a GAN, plain or with the dual loss", "train", processes=True),
    "sample": Command("sample", "draw captions with a trained generator", "train"),
    "pretrain": Command("pretrain", "train a matcher on captioned pictures"),
    "data": Command("data", "make data sets, check your own"),
    "evaluate": Command("evaluate", "compute every number about a generator, with a report"),
    "report": Command("report", "the report of one evaluated run, or of several side by side"),
    "score": Command("score", "score pictures of any generator against their captions"),
    "judge": Command("judge", "train the attribute classifier of the synthetic birds"),
    # An original's script may well join ranks by itself.
    "run-legacy": Command(
        "run_legacy", "run an original's script, unedited, on today's Python and torch", processes=True
    ),
    "patch": Command("patch", "put the loss into a clone of an original trainer"),
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the defaults to the help, but for flags and for what has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        without = action.default is None or isinstance(action.default, bool)
        return action.help if without else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Imports the command's module when the command is chosen: what one command needs, the others do without."""

    command: Command | None = None

    def parse_known_args(self, *arguments: object, **options: object) -> tuple[argparse.Namespace, list[str]]:
        # Once, and not for the parsers below a command (`data check`), which are of this class as well.
        if (command := self.command) is not None:
            self.command = None
            with explain_missing(self.prog, command.extra, 2):
                module = importlib.import_module(f"vlm_plugin.cli.{command.module}")
            module.add_arguments(self)
            self.set_defaults(run=module.run)
        return super().parse_known_args(*arguments, **options)


def parser() -> argparse.ArgumentParser:
    """Every command; its arguments are added when it is parsed."""
    root = argparse.ArgumentParser(
        prog="vlm-plugin", description="Dual vision-language matching for text-to-image GANs"
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name, help=command.description, description=command.description, formatter_class=_Help
        )
        added.command = command
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line on stderr and exit status 2, Ctrl-C one and 130."""
    escape_unprintable()
    name = "vlm-plugin"
    try:
        arguments = parser().parse_args(argv)
        name = f"vlm-plugin {arguments.command}"
        _check_one_process(arguments.command)
        # Ranks wait for each other where Python hears no signal: the launcher's ends them at once.
        with contextlib.nullcontext() if COMMANDS[arguments.command].processes else tidy_end():
            return arguments.run(arguments) or 0
    except KeyboardInterrupt as error:
        # A command may say what it has kept.
        print(f"{name}: interrupted{f'; {error}' if error.args else ''}", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # By its name: not every command loads torch.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"{name}: {error} Try a smaller --batch, or a CPU (--device cpu)", file=sys.stderr)
        return 2


def _check_one_process(command: str) -> None:
    """Several processes would each do all the work and overwrite each other's files."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and not COMMANDS[command].processes:
        raise ValueError(f"expected one process: start it without torchrun, got WORLD_SIZE {world}")
