"""`vlm-plugin run-legacy`."""

from __future__ import annotations

import argparse

from vlm_plugin.hosts.run_legacy import run_legacy
from vlm_plugin.terminal import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin run-legacy`."""
    parser.epilog = (
        "The script runs in HOST/code. Without a GPU its calls for one do nothing; on a machine that has one, "
        "CUDA_VISIBLE_DEVICES= hides it."
    )
    parser.add_argument("host", type=user_path, help="clone of an original repository")
    parser.add_argument("words", metavar="-- script ...", nargs=argparse.REMAINDER, help="script and its arguments")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin run-legacy`."""
    words = arguments.words
    run_legacy(arguments.host, words[1:] if words[:1] == ["--"] else words)
