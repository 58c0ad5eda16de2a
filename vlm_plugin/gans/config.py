"""What a run will do, from the command line, settings files and earlier runs."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from vlm_plugin import distributed
from vlm_plugin.data import Record
from vlm_plugin.data.birds.make import BIRDS_FOLDER
from vlm_plugin.data.records import digest_records
from vlm_plugin.files import ASSETS, whole
from vlm_plugin.gans.settings import origin_of_run, read_config, settings_of_run
from vlm_plugin.gans.show import Show
from vlm_plugin.matcher.choose import PACKAGED, is_packaged
from vlm_plugin.terminal import name_or_path, user_path
from vlm_plugin.training.stream import check_seed

RUNS = Path("runs")
# What beside --resume says where a run's files lie now.
_MOVABLE = {"data": "--data DIR", "vlm": "--vlm FILE", "text_encoder": "--text-encoder FILE"}
# A mismatched pair needs a second caption, a distance a second picture.
_LEAST = {"steps": 0, "batch": 2, "evaluated": 2, "log_every": 1, "sample_every": 1, "checkpoint_every": 1}


def parser(name: str) -> argparse.ArgumentParser:
    """Arguments of a baseline's main.py."""
    result = argparse.ArgumentParser(
        prog=f"baselines/{name}/main.py",
        description=f"Train {name}; with --vlm, the same with the dual vision-language matching loss. "
        "Without --data: synthetic birds, from the packaged start.",
    )
    add = result.add_argument
    add(
        "--vlm", type=name_or_path, nargs="?", const=PACKAGED, metavar="CHECKPOINT",
        help="add the dual loss of this matcher",
    )  # fmt: skip
    cfg_help = (
        "YAML settings, ours or the original's (default: cfg/synthetic.yml, from random weights cfg/scratch.yml, from "
        "a run's folder that run's own)"
    )
    add("--cfg", type=user_path, help=cfg_help)
    add(
        "--data",
        type=user_path,
        help=f"folder of captioned pictures (default: synthetic birds, drawn into {BIRDS_FOLDER})",
    )
    # No default here: --resume refuses one that is given.
    add("--out", type=user_path, help=f"where run folders are made (default: {RUNS})")
    add("--resume", type=user_path, metavar="RUN", help="go on with an interrupted run, from its folder")
    generator_help = "begin from, or draw with, a run's folder, a packaged start or a published checkpoint"
    add("--generator", type=user_path, metavar="RUN_OR_FILE", help=generator_help)
    sample_help = "draw these captions (a file: one a line, or a table as vlm-plugin score reads it); no training"
    add("--sample", type=name_or_path, nargs="+", metavar="CAPTION_OR_FILE", help=sample_help)
    length = result.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole_number, help="generator updates")
    length.add_argument("--epochs", type=whole_number, help="passes over the train split")
    add("--batch", type=whole_number, help="pictures in a batch of each process")
    add("--seed", type=whole_number, help="decides initial weights, order and noise (default: 0)")
    add("--device", help="cuda, cuda:1, cpu (default: the GPU where there is one)")
    encoder_help = "plain runs and --sample: the matcher or DAMSM text encoder that conditions the generator"
    add("--text-encoder", type=name_or_path, metavar="FILE", help=encoder_help)
    add("--from-scratch", action="store_true", help="do not start from the packaged generator")
    add("--skip-bad", action="store_true", help="leave out pictures that cannot be used, and list them in skipped.txt")
    return result


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return int(text)


def check_settings(settings: EasyDict) -> None:
    for name, least in _LEAST.items():
        if settings[name] < least:
            raise ValueError(f"{name}: expected at least {least}, got {settings[name]}")
    for name in ("lambda_vvm", "lambda_vlm", "vvm_start", "vvm_warmup", "vlm_start", "vlm_warmup"):
        if settings.vlm[name] < 0:
            raise ValueError(f"vlm.{name}: expected a number from 0 up, got {settings.vlm[name]}")
    # An average that weighs what is new negatively grows without bound.
    if not 0 <= settings.ema <= 1:
        raise ValueError(f"ema: expected a number from 0 to 1, got {settings.ema}")
    for name in ("generator_lr", "discriminator_lr"):
        if settings[name] < 0:
            raise ValueError(f"{name}: expected a number from 0 up, got {settings[name]}")
    if not all(0 <= beta < 1 for beta in settings.adam_betas):
        raise ValueError(f"adam_betas: expected two numbers from 0 to below 1, got {list(settings.adam_betas)}")
    workers = settings.workers
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ValueError(f"workers: expected null, or a whole number from 0 up, got {workers!r}")


def packaged_start(folder: Path) -> Path:
    return folder / "assets" / "birds.pt"


def new_options(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a new run will do, in plain values: this is what a resumed run reads.

    An original's settings file also decides arguments; the command line's own come first.
    """
    if arguments.vlm and arguments.text_encoder:
        raise ValueError("--text-encoder: only for plain runs: with --vlm the matcher's own text encoder is used")
    if arguments.generator and arguments.from_scratch:
        raise ValueError("--from-scratch: contradicts --generator")
    packaged = (
        (arguments.cfg, arguments.data, arguments.generator, arguments.from_scratch) == (None, None, None, False)
        and (arguments.vlm or arguments.text_encoder or PACKAGED) == PACKAGED
        and packaged_start(folder).is_file()
    )
    # Weights and rates that suit a generator that draws already ruin one that does not yet.
    default = "synthetic.yml" if packaged or arguments.generator else "scratch.yml"
    if arguments.cfg is None and arguments.generator and (arguments.generator / "options.json").is_file():
        settings, original = settings_of_run(arguments.generator, folder), {}
    else:
        settings, original = read_config(arguments.cfg or folder / "cfg" / default, folder)
    if arguments.batch is not None:
        settings.batch = arguments.batch
    check_settings(settings)
    # A generator goes on with what it has learned to read and draw, unless something else is named.
    origin = origin_of_run(arguments.generator)
    data = arguments.data or original.get("data") or origin.get("data")
    # An original's settings with the patch's lines name a matcher, which switches the loss on there as well.
    vlm = arguments.vlm or (None if arguments.text_encoder else original.get("vlm"))
    if vlm == PACKAGED:  # A bare --vlm means the matcher at hand: an original's settings name it, or a DAMSM pair.
        vlm = original.get("vlm") or original.get("text_encoder") or origin.get("matcher") or PACKAGED
    matcher = vlm or arguments.text_encoder or original.get("text_encoder") or origin.get("matcher") or PACKAGED
    if data is None and not is_packaged(matcher):
        raise ValueError(
            f"--data: expected a folder of captioned pictures for the matcher {matcher}, got none, and the synthetic "
            "birds are drawn for the packaged matcher alone"
        )
    start = None if arguments.from_scratch else arguments.generator or original.get("generator")
    if packaged:
        start = packaged_start(folder)
    trains = original.get("train", True)
    return {
        "baseline": name,
        "settings": json.loads(json.dumps(settings)),
        "data": _in_full(data),
        "vlm": _in_full(matcher) if vlm else None,
        "text_encoder": None if vlm else _in_full(matcher),
        "max_words": original.get("max_words"),
        "start": _in_full(start),
        "start_discriminators": original.get("discriminators", True),
        "steps": settings.steps if trains else 0,
        "epochs": original.get("epochs") if trains else None,
        "seed": seed_of(arguments, original),
        "spread": True,
    }


def seed_of(arguments: argparse.Namespace, original: Mapping[str, Any]) -> int:
    return check_seed(original.get("seed", 0) if arguments.seed is None else arguments.seed)


def _in_full(path: str | Path | None) -> str | None:
    """An existing file's or folder's whole path: a run may be resumed from another folder."""
    if path is None or str(path) == PACKAGED:
        return path
    return str(Path(path).resolve() if Path(path).exists() else path)


def saved_options(name: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    if arguments.resume is None:
        return None
    fixed = ("cfg", "out", "batch", "seed", "generator")
    given = [f"--{n.replace('_', '-')}" for n in fixed if getattr(arguments, n) is not None]
    if given := given + ["--from-scratch"] * arguments.from_scratch:
        raise ValueError(f"--resume takes these from {arguments.resume}/options.json: leave out {', '.join(given)}")
    for file in ("options.json", "checkpoint.pt"):
        if not (arguments.resume / file).is_file():
            raise FileNotFoundError(f"--resume {arguments.resume}: expected a run's folder with {file}")
    with whole(arguments.resume / "options.json"):
        options = json.loads((arguments.resume / "options.json").read_text(encoding="utf-8"))
        if options["baseline"] != name:
            raise ValueError(f"--resume {arguments.resume}: a run of {options['baseline']}")
        return options


def moved_files(options: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, str]:
    """Where files of a resumed run lie now; that they are the same is checked where they are read."""
    for name, other in (("vlm", "text_encoder"), ("text_encoder", "vlm")):
        if getattr(arguments, name) is not None and options[name] is None:
            raise ValueError(
                f"--{name.replace('_', '-')}: {arguments.resume} was begun without: its matcher is "
                f"--{other.replace('_', '-')} {options[other]}"
            )
    given = {name: getattr(arguments, name) for name in _MOVABLE}
    return {name: _in_full(path) for name, path in given.items() if path is not None}


def named_by_run(options: Mapping[str, Any], arguments: argparse.Namespace, *names: str) -> dict[str, str | None]:
    """Option -> what a resumed run itself names for it, where the command line does not."""
    return {_MOVABLE[name]: options[name] for name in names if getattr(arguments, name) is None}


def begun_with(records: Sequence[Record], show: Show) -> dict[str, Any]:
    """What a run must find again when it is resumed: as many processes, the same pictures and captions."""
    used = {"train": records, "evaluated": show.records}
    return {
        "processes": distributed.world_size(),
        "pictures": {use: f"{len(some)} (digest {digest_records(some)})" for use, some in used.items()},
    }


def check_begun(saved: dict[str, Any], now: dict[str, Any], where: str, data: Path) -> None:
    # What runs of an earlier release do not say stays unchecked.
    then = now | {name: saved[name] for name in now if name in saved}
    if then["processes"] != now["processes"]:
        raise ValueError(f"{where}: begun with {_processes(then)}, got {_processes(now)}")
    for use, pictures in now["pictures"].items():
        if then["pictures"][use] != pictures:
            raise ValueError(
                f"{where}: expected the pictures and captions that {data} had when the run began, got others: "
                f"{use}: {then['pictures'][use]} then, {pictures} now"
            )


def _processes(begun: dict[str, Any]) -> str:
    return f"{begun['processes']} process{'' if begun['processes'] == 1 else 'es'}"


def run_length(arguments: argparse.Namespace, options: dict[str, Any], size: int) -> int:
    if arguments.steps is not None:
        return arguments.steps
    epochs = options["epochs"] if arguments.epochs is None else arguments.epochs
    if epochs is None:
        return options["steps"]
    # An epoch of less than a batch is a step.
    return max(epochs * size // (options["settings"]["batch"] * distributed.world_size()), min(epochs, 1))


@contextlib.contextmanager
def may_have_moved(run: Path | None, named: Mapping[str, str | Path | None]) -> Iterator[None]:
    """Say of what is missing that a run's options.json names it, and how to say where it lies now.

    Args:
        run: the run's folder; None where no run names anything.
        named: option -> the file or folder that the run names for it; None for nothing, or for what the command line
            names itself.

    Raises:
        FileNotFoundError: the block's, with that behind it where one of `named` is not there.
    """
    try:
        yield
    except FileNotFoundError as error:
        asked = {option: path for option, path in named.items() if path not in (None, PACKAGED)}
        # The bare name of a packaged matcher is no file of the working folder.
        gone = [(o, path) for o, path in asked.items() if not (Path(path).exists() or (ASSETS / path).exists())]
        if run is None or not gone:
            raise
        option, path = gone[0]
        remedy = f"{run / 'options.json'} names {path}: say where it lies now with {option}"
        raise FileNotFoundError(f"{error}; {remedy}") from None
