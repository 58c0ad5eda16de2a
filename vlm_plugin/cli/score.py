"""`vlm-plugin score`."""

from __future__ import annotations

import argparse

from vlm_plugin.data.captions import read_captions
from vlm_plugin.evaluation.score import describe, score, write_scores
from vlm_plugin.files import check_writable
from vlm_plugin.matcher.choose import load_matcher, unknown_words
from vlm_plugin.terminal import check_outside, name_or_path, user_path
from vlm_plugin.training.device import choose_device


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
    out = arguments.out
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    check_outside(out, arguments.images, "file")
    if out.resolve() == arguments.captions.resolve():
        raise ValueError(f"out: expected another file than the captions, got {out}")
    place = choose_device(arguments.device)
    captions = read_captions(arguments.captions, arguments.images)
    vlm = load_matcher(arguments.vlm, device=place)
    check_writable(out)
    rows = score(vlm, arguments.images, captions, batch=arguments.batch)
    write_scores(rows, out)
    told = unknown_words(list(captions.values()), vlm.vocabulary, arguments.vlm)
    lines = [describe(rows), *([told] if told else [])]
    lines += [f"matcher {vlm.fingerprint} ({arguments.vlm})", f"wrote {out}, best first"]
    print("\n".join(lines))
