"""`vlm-plugin data`."""

from __future__ import annotations

import argparse

from vlm_plugin.data.birds.overview import make_and_describe
from vlm_plugin.data.check import check_and_write
from vlm_plugin.terminal import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin data`."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    birds = kinds.add_parser("synthetic", help="draw birds with captions whose truth is known, in the CUB layout")
    birds.add_argument("directory", type=user_path)
    birds.add_argument("--train", type=int, default=2500, help="pictures of the train split")
    birds.add_argument("--validation", type=int, default=500)
    birds.add_argument("--test", type=int, default=500)
    birds.add_argument("--size", type=int, default=64, help="pixels")
    birds.add_argument("--seed", type=int, default=0)
    birds.set_defaults(kind_run=_run_synthetic)
    checked = kinds.add_parser(
        "check", help="look at every picture and caption of a data folder; exit status 1 if any is bad"
    )
    checked.add_argument("directory", type=user_path)
    checked.add_argument(
        "--out",
        type=user_path,
        help="contact sheet to write, and with .txt behind its name the list of problems (default: data-check-NAME.png "
        "in this folder; inside the data, beside it)",
    )
    checked.set_defaults(kind_run=_run_check)


def run(arguments: argparse.Namespace) -> int | None:
    """Run `vlm-plugin data`."""
    return arguments.kind_run(arguments)


def _run_synthetic(arguments: argparse.Namespace) -> None:
    make_and_describe(
        arguments.directory, arguments.train, arguments.validation, arguments.test, arguments.size, arguments.seed
    )


def _run_check(arguments: argparse.Namespace) -> int:
    """Exit status: 1 if anything is fatal."""
    return int(check_and_write(arguments.directory, arguments.out).fatal > 0)
