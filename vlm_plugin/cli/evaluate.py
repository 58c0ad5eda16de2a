"""`vlm-plugin evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from vlm_plugin.gans.evaluate import evaluate
from vlm_plugin.gans.find import find_source
from vlm_plugin.terminal import name_or_path, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin evaluate`."""
    add = parser.add_argument
    source_help = "a run's folder, a published checkpoint or, by a baseline's name (dfgan, attngan), its packaged start"
    add("source", type=user_path, metavar="RUN_OR_CHECKPOINT", help=source_help)
    add(
        "--data", type=user_path, help="folder of captioned pictures (default: the run's own, else the synthetic birds)"
    )
    add("--out", type=user_path, help="folder for the results (default: the run's own)")
    add("--split", default="test")
    add("--count", type=int, help="captions evaluated (default: every caption of the split)")
    add("--batch", type=int, default=50, help="pictures at a time")
    add("--seed", type=int, default=0, help="draws noise, wrong captions and folds")
    add("--truncation", type=float, help="cut the noise off at plus and minus this")
    add("--no-ema", dest="averaged", action="store_false", help="use the weights as trained, not their average")
    evaluator_help = "matcher that scores; one that trained the generator is marked circular"
    add("--evaluator", type=name_or_path, metavar="FILE", help=evaluator_help)
    inception_help = "Inception weights (torch-fidelity's), for FID, KID and Inception Score"
    add("--inception", type=user_path, metavar="FILE", help=inception_help)
    encoder_help = "what conditions the generator, where its file does not say"
    add("--text-encoder", type=name_or_path, metavar="FILE", help=encoder_help)
    add("--pictures", action="store_true", help="also write every picture, with captions.csv")
    add("--skip-bad", action="store_true", help="leave out pictures that cannot be read (default: as the run did)")
    add("--device", help="cuda, cuda:1, cpu")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin evaluate`."""
    options: dict[str, Any] = {k: v for k, v in vars(arguments).items() if k not in ("command", "run")}
    evaluate(find_source(options.pop("source")), options.pop("data"), **options)
