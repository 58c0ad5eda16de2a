"""`vlm-plugin judge`."""

from __future__ import annotations

import argparse

from vlm_plugin.evaluation.judge import train_judge
from vlm_plugin.terminal import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin judge`."""
    parser.add_argument(
        "--data", type=user_path, required=True, help="folder of synthetic birds, made with a seed of its own"
    )
    parser.add_argument("--out", type=user_path, required=True, help="file to write")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin judge`."""
    judge = train_judge(
        arguments.data,
        arguments.out,
        epochs=arguments.epochs,
        batch=arguments.batch,
        seed=arguments.seed,
        device=arguments.device,
    )
    for name, share in judge.accuracy.items():
        print(f"{name:12s} {share:.3f}")
