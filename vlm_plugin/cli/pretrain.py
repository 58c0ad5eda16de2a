"""`vlm-plugin pretrain`."""

from __future__ import annotations

import argparse

from vlm_plugin.data.records import BadSampleError
from vlm_plugin.pretraining.pretrain import pretrain
from vlm_plugin.pretraining.resume import what_is_kept
from vlm_plugin.pretraining.settings import DEFAULTS, PretrainSettings
from vlm_plugin.terminal import name_or_path, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin pretrain`."""
    parser.add_argument("--data", type=user_path, required=True, help="folder of captioned pictures")
    parser.add_argument(
        "--out", type=user_path, required=True, help="file to write; the same command resumes after a kill"
    )
    # Not given is something else than given as conv: with --damsm the files decide.
    parser.add_argument(
        "--encoder", choices=sorted(DEFAULTS), default=argparse.SUPPRESS, help="image encoder (default: conv)"
    )
    parser.add_argument(
        "--damsm",
        type=user_path,
        metavar="TEXT_ENCODER",
        help="start from this published DAMSM text encoder and its image encoder",
    )
    parser.add_argument("--freeze-encoders", action="store_true", help="with --damsm, train nothing but the scorer")
    parser.add_argument("--epochs", type=int, default=PretrainSettings.epochs)
    parser.add_argument("--batch", type=int, default=PretrainSettings.batch)
    parser.add_argument("--embed-dim", type=int, help="common dimension (inception: 256, others: 128)")
    parser.add_argument("--image-size", type=int, help="pixels (inception: 256, others: 64)")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument(
        "--image-weights", type=name_or_path, help='"imagenet" (torchvision\'s cached file) or a file, for inception'
    )
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument("--seed", type=int, default=PretrainSettings.seed)
    parser.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be used, and list them")
    bad_help = "pass over steps with NaN or infinity, and stop after so many in a row (1: at the first)"
    parser.add_argument("--max-bad-steps", type=int, default=PretrainSettings.max_bad_steps, metavar="N", help=bad_help)
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin pretrain`."""
    options = {k: v for k, v in vars(arguments).items() if k not in ("command", "run")}
    try:
        pretrain(options.pop("data"), options.pop("out"), **options)
    except BadSampleError as error:
        raise ValueError(f"{error} (--skip-bad leaves out what cannot be used)") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what_is_kept(arguments.out)) from None
