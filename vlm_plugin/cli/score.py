"""`vlm-plugin score`."""

from __future__ import annotations

import argparse

from vlm_plugin.evaluation.score import score_folder
from vlm_plugin.terminal import name_or_path, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin score`."""
    vlm_help = "matcher; take one that trained no generator here"
    parser.add_argument("--vlm", type=name_or_path, required=True, metavar="FILE", help=vlm_help)
    parser.add_argument(
        "--images", type=user_path, required=True, metavar="DIR", help="folder of pictures, with subfolders"
    )
    parser.add_argument(
        "--captions",
        type=user_path,
        required=True,
        metavar="FILE",
        help=".csv, .tsv, .jsonl (file_name, caption), .json ({file_name: caption}), else one a line in natural order",
    )
    parser.add_argument("--out", type=user_path, default="scores.csv", help="file to write, best picture first")
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time")
    parser.add_argument("--device", help="cuda, cuda:1, cpu")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin score`."""
    score_folder(
        arguments.vlm,
        arguments.images,
        arguments.captions,
        arguments.out,
        batch=arguments.batch,
        device=arguments.device,
    )
