"""`vlm-plugin sample`."""

from __future__ import annotations

import argparse

from vlm_plugin.gans.config import RUNS, whole_number
from vlm_plugin.gans.find import find_networks, find_source
from vlm_plugin.gans.sampling import Source, read_captions, sample
from vlm_plugin.terminal import name_or_path, user_path
from vlm_plugin.training.device import choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin sample`."""
    add = parser.add_argument
    source_help = "a run's folder, a published generator or, by a baseline's name (dfgan, attngan), its packaged start"
    add("source", type=user_path, metavar="RUN_OR_FILE", help=source_help)
    captions_help = "a caption, or a file of captions: one a line, or a table as vlm-plugin score reads it"
    add("captions", type=name_or_path, nargs="+", metavar="CAPTION_OR_FILE", help=captions_help)
    add("--data", type=user_path, help="folder with a DAMSM text encoder's vocabulary (default: the run's own)")
    encoder_help = "matcher or DAMSM text encoder that conditions the generator (default: the run's own)"
    add("--text-encoder", type=name_or_path, metavar="FILE", help=encoder_help)
    add("--out", type=user_path, default=RUNS, help="where the folder of pictures is made")
    add("--seed", type=whole_number, default=0, help="decides the noise")
    add("--device", help="cuda, cuda:1, cpu (default: the GPU where there is one)")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin sample`."""
    path, captions = find_source(arguments.source), read_captions(arguments.captions, "captions")
    device = choose_device(arguments.device)
    trainer, saved = find_networks(path)
    source = Source(path, trainer, saved, arguments.text_encoder, arguments.data)
    sample(source, captions, arguments.out, seed=arguments.seed, device=device)
