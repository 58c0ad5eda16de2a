"""`vlm-plugin train`."""

from __future__ import annotations

import argparse

from vlm_plugin.gans.config import parser as trainer_parser
from vlm_plugin.gans.find import BASELINES, baseline
from vlm_plugin.gans.run import start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin train`: a baseline, then what its `main.py` takes."""
    kinds = parser.add_subparsers(dest="baseline", required=True)
    for name, trainer in BASELINES.items():
        same = trainer_parser(name)
        kinds.add_parser(name, help=f"train {trainer}", description=same.description, parents=[same], add_help=False)


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin train`."""
    start(*baseline(arguments.baseline), arguments)
