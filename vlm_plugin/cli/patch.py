"""`vlm-plugin patch`."""

from __future__ import annotations

import argparse

from vlm_plugin.hosts.patch import patch_host
from vlm_plugin.terminal import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vlm-plugin patch`."""
    parser.add_argument("host", metavar="HOST_DIR", type=user_path, help="clone of taoxugit/AttnGAN or tobran/DF-GAN")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="say whether it applies or is applied, and touch nothing")
    mode.add_argument("--revert", action="store_true", help="take the lines out again")


def run(arguments: argparse.Namespace) -> int:
    """`vlm-plugin patch`."""
    return patch_host(arguments.host, check=arguments.check, revert=arguments.revert)
