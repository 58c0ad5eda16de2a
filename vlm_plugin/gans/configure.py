"""One `RunConfig` of all that was said: on the command line, in settings files, by earlier runs.

The table at the top of `config.py` says which source counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_plugin.files import previous, whole
from vlm_plugin.gans.config import (
    MOVABLE,
    RUNS,
    Beginning,
    Resumed,
    RunConfig,
    Settings,
    check_settings,
    packaged_start,
)
from vlm_plugin.gans.find import Baseline
from vlm_plugin.gans.settings import Original, SettingsFile, origin_of_run, read_config, settings_of_run
from vlm_plugin.matcher.choose import PACKAGED, is_packaged
from vlm_plugin.training.bad_steps import MAX_BAD_STEPS, check_max_bad_steps
from vlm_plugin.training.stream import check_seed


def configure(baseline: Baseline, arguments: argparse.Namespace) -> RunConfig:
    """What a run will do.

    Args:
        baseline: what is trained.
        arguments: of `config.parser`.

    Raises:
        FileNotFoundError, ValueError: the message names the argument, or the file and its setting.
    """
    return _new_run(baseline, arguments) if arguments.resume is None else _resumed_run(baseline, arguments)


def seed_of(arguments: argparse.Namespace, original: Original) -> int:
    """The seed that the command line or an original's settings file names; 0 where neither does."""
    seed = original.seed if arguments.seed is None else arguments.seed
    return check_seed(0 if seed is None else seed)


# ---------------------------------------------------------------------------------------------------------------------
# A new run
# ---------------------------------------------------------------------------------------------------------------------


def _new_run(baseline: Baseline, arguments: argparse.Namespace) -> RunConfig:
    if arguments.vlm and arguments.text_encoder:
        raise ValueError("--text-encoder: only for plain runs: with --vlm the matcher's own text encoder is used")
    if arguments.generator and arguments.from_scratch:
        raise ValueError("--from-scratch: contradicts --generator")
    from_packaged = _begins_from_the_packaged_start(baseline, arguments)
    settings, original = _settings(baseline, arguments, from_packaged)
    # A generator goes on with what it has learned to read and draw, unless something else is named.
    origin = origin_of_run(arguments.generator)
    vlm = arguments.vlm or (None if arguments.text_encoder else original.vlm)
    if vlm == PACKAGED:  # A bare --vlm means the matcher at hand: an original's settings name it, or a DAMSM pair.
        vlm = original.vlm or original.text_encoder or origin.matcher or PACKAGED
    matcher = vlm or arguments.text_encoder or original.text_encoder or origin.matcher or PACKAGED
    data = arguments.data or original.data or origin.data
    if data is None and not is_packaged(matcher):
        raise ValueError(
            f"--data: expected a folder of captioned pictures for the matcher {matcher}, got none, and the synthetic "
            "birds are drawn for the packaged matcher alone"
        )
    start = None if arguments.from_scratch else arguments.generator or original.generator
    steps, epochs = (settings.steps, original.epochs) if original.train else (0, None)
    return RunConfig(
        baseline=baseline.name,
        settings=settings,
        data=_in_full(data),
        vlm=_in_full(matcher) if vlm else None,
        text_encoder=None if vlm else _in_full(matcher),
        max_words=original.max_words,
        start=_in_full(packaged_start(baseline.folder) if from_packaged else start),
        start_discriminators=original.discriminators,
        **_length(arguments, steps, epochs),
        seed=seed_of(arguments, original),
        spread=True,
        skip_bad=arguments.skip_bad,
        max_bad_steps=check_max_bad_steps(arguments.max_bad_steps, MAX_BAD_STEPS),
        precision=settings.precision,
        out=arguments.out or RUNS,
        device=arguments.device,
    )


def _begins_from_the_packaged_start(baseline: Baseline, arguments: argparse.Namespace) -> bool:
    """As the first command does. That start belongs to the birds and to the packaged matcher."""
    given = (arguments.cfg, arguments.data, arguments.generator, arguments.from_scratch)
    matcher = arguments.vlm or arguments.text_encoder or PACKAGED
    return given == (None, None, None, False) and matcher == PACKAGED and packaged_start(baseline.folder).is_file()


def _settings(baseline: Baseline, arguments: argparse.Namespace, from_packaged: bool) -> SettingsFile:
    """Settings within their ranges, and what else an original's file says."""
    generator = arguments.generator
    if arguments.cfg is None and generator and (generator / "options.json").is_file():
        settings, original = settings_of_run(generator, baseline), Original()
    else:
        # Weights and rates that suit a generator that draws already ruin one that does not yet.
        default = "synthetic.yml" if from_packaged or generator else "scratch.yml"
        settings, original = read_config(arguments.cfg or baseline.folder / "cfg" / default, baseline)
    if arguments.batch is not None:
        settings = dataclasses.replace(settings, batch=arguments.batch)
    check_settings(settings)
    return SettingsFile(settings, original)


def _length(arguments: argparse.Namespace, steps: int, epochs: int | None) -> dict[str, int | None]:
    """`steps` and `epochs` of a run; the command line's come first, and name one of both."""
    if arguments.steps is not None:
        return {"steps": arguments.steps, "epochs": None}
    return {"steps": steps, "epochs": epochs if arguments.epochs is None else arguments.epochs}


def _in_full(path: str | Path | None) -> str | None:
    """An existing file's or folder's whole path: a run may be resumed from another folder."""
    if path is None or str(path) == PACKAGED:
        return path
    return str(Path(path).resolve() if Path(path).exists() else path)


# ---------------------------------------------------------------------------------------------------------------------
# A resumed run
# ---------------------------------------------------------------------------------------------------------------------


def _resumed_run(baseline: Baseline, arguments: argparse.Namespace) -> RunConfig:
    folder = arguments.resume
    fixed = ("cfg", "out", "batch", "seed", "generator")
    given = [f"--{n.replace('_', '-')}" for n in fixed if getattr(arguments, n) is not None]
    if given := given + ["--from-scratch"] * arguments.from_scratch:
        raise ValueError(f"--resume takes these from {folder}/options.json: leave out {', '.join(given)}")
    for file in ("options.json", "checkpoint.pt"):
        # Of a checkpoint the one before will do.
        if not ((folder / file).is_file() or previous(folder / file).is_file()):
            raise FileNotFoundError(f"--resume {folder}: expected a run's folder with {file}")
    with whole(folder / "options.json"):
        options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
        if options["baseline"] != baseline.name:
            raise ValueError(f"--resume {folder}: a run of {options['baseline']}")
        then = _config_of(options, baseline.trainer.settings_type, folder)
    moved = _moved_files(then, arguments)
    return dataclasses.replace(
        then,
        **moved,
        **_length(arguments, then.steps, then.epochs),
        # A run that broke on its data may go on without what broke it.
        skip_bad=then.skip_bad or arguments.skip_bad,
        max_bad_steps=check_max_bad_steps(arguments.max_bad_steps, then.max_bad_steps),
        device=arguments.device,
        resumed=dataclasses.replace(then.resumed, moved=frozenset(moved)),
    )


def _config_of(options: Mapping[str, Any], settings_type: type[Settings], folder: Path) -> RunConfig:
    """The run that `RunConfig.options` wrote, of this release or an earlier one.

    Raises:
        KeyError, TypeError, AttributeError: it did not write these.
    """
    beginning = Beginning(**{f.name: options.get(f.name) for f in dataclasses.fields(Beginning)})
    known = {f.name: options[f.name] for f in dataclasses.fields(RunConfig) if f.name in options}
    settings = settings_type.of(options["settings"])
    resumed = Resumed(folder=folder, data=options["data"], moved=frozenset(), beginning=beginning)
    return RunConfig(**{"precision": settings.precision, **known, "settings": settings, "resumed": resumed})


def _moved_files(then: RunConfig, arguments: argparse.Namespace) -> dict[str, str]:
    """Where files of a resumed run lie now; that they are the same is checked where they are read."""
    for name, other in (("vlm", "text_encoder"), ("text_encoder", "vlm")):
        if getattr(arguments, name) is not None and getattr(then, name) is None:
            raise ValueError(
                f"--{name.replace('_', '-')}: {arguments.resume} was begun without: its matcher is "
                f"--{other.replace('_', '-')} {getattr(then, other)}"
            )
    given = {name: getattr(arguments, name) for name in MOVABLE}
    return {name: _in_full(path) for name, path in given.items() if path is not None}
