"""Every knob of a run, in one place: what it is called, its kind, its range, and what it means.

`configure.configure` makes one `RunConfig` of all that was said, and the run reads nothing else. Values of the settings
stand in the baselines' `cfg/*.yml`; a baseline adds its own in the `settings.py` beside its trainer. Where several
sources speak of the same, the first of a row counts:

| of a new run                    | asked in this order                                                                |
| ------------------------------- | ---------------------------------------------------------------------------------- |
| settings                        | --cfg (ours, or an original's), --generator RUN's own (the loss begins at once),   |
|                                 | cfg/synthetic.yml from a generator that draws, cfg/scratch.yml from random weights |
| settings.batch                  | --batch, the settings                                                              |
| data                            | --data, an original's file, --generator RUN's, the synthetic birds                 |
| vlm                             | --vlm FILE, an original's file unless --text-encoder is given, none: a plain run   |
| vlm, where --vlm names no file  | an original's matcher, its text encoder, --generator RUN's matcher, the packaged   |
| text_encoder                    | --text-encoder, an original's file, --generator RUN's matcher, the packaged one    |
| start                           | --from-scratch: none, --generator, an original's file, the packaged start where    |
|                                 | neither settings, data nor another matcher are named                               |
| steps                           | --steps, --epochs, an original's file, settings.steps                              |
| seed                            | --seed, an original's file, 0                                                      |
| max_words, start_discriminators | an original's file                                                                 |

A resumed run (--resume RUN) is what its `options.json` says, and the others of these options are refused. Beside it,
--data, --vlm and --text-encoder say where its files lie now, --steps and --epochs how long it is to be, and --skip-bad
and --max-bad-steps hold from now on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vlm_plugin.data.birds.make import BIRDS_FOLDER
from vlm_plugin.files import ASSETS
from vlm_plugin.matcher.choose import PACKAGED
from vlm_plugin.terminal import name_or_path, user_path
from vlm_plugin.training.bad_steps import MAX_BAD_STEPS

RUNS = Path("runs")
# What beside --resume says where a run's files lie now.
MOVABLE = {"data": "--data DIR", "vlm": "--vlm FILE", "text_encoder": "--text-encoder FILE"}
# A mismatched pair needs a second caption, a distance a second picture.
_LEAST = {"steps": 0, "batch": 2, "evaluated": 2, "log_every": 1, "sample_every": 1, "checkpoint_every": 1}

AnySection = TypeVar("AnySection", bound="Section")


# ---------------------------------------------------------------------------------------------------------------------
# What settings files say
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Knobs of a settings file, or of a part of it that has a name of its own."""

    order: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)
    """Names as the file had them, for `options.json` and the report: no knob."""

    @classmethod
    def of(cls: type[AnySection], content: Mapping[str, Any]) -> AnySection:
        """The typed form of what a file holds.

        Raises:
            TypeError: a name is missing or unknown. (`settings.read_config` says so in the user's words.)
        """
        kinds = get_type_hints(cls)
        values = {name: _typed(kinds.get(name), value) for name, value in content.items()}
        return cls(**values, order=tuple(content))

    def plain(self) -> dict[str, Any]:
        """As a file holds it: the inverse of `of`."""
        names = self.order or tuple(field.name for field in dataclasses.fields(self) if field.name != "order")
        values = {name: getattr(self, name) for name in names}
        return {name: value.plain() if isinstance(value, Section) else value for name, value in values.items()}


def _typed(kind: object, value: object) -> object:
    return kind.of(value) if isinstance(kind, type) and issubclass(kind, Section) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLMSettings(Section):
    """The dual loss: read with `--vlm` alone."""

    lambda_vvm: float
    """Weight of the visual-visual half, from 0 up."""
    lambda_vlm: float
    """Weight of the textual-visual half, from 0 up."""
    vvm_start: int
    """Step at which the visual-visual half sets in, from 0 up."""
    vvm_warmup: int
    """Steps that it takes from there to reach its weight, on a straight line; 0: at once."""
    vlm_start: int
    """Step at which the textual-visual half sets in, from 0 up."""
    vlm_warmup: int
    """Steps that it takes from there to reach its weight, on a straight line; 0: at once."""
    augment: bool
    """The matcher sees a random view of each generated picture, so that no single pixel convinces it."""
    terms: list[str] | None
    """Names of `vlm_plugin.TERMS`; null for all six or, of a matcher without a scorer, the four that need none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """What the trainers share. A baseline's own dataclass adds its networks and losses."""

    # ---- the networks' input
    normalise_text: bool
    """Word and sentence vectors are brought to the length sqrt(D), see `trainer.scaled`; published generators read
    them as the text encoder gives them."""

    # ---- how the networks are trained
    batch: int
    """Pictures in a batch of each process, from 2 up."""
    steps: int
    """Updates of the generator, from 0 up."""
    generator_lr: float
    """Adam's learning rate of the generator, from 0 up."""
    discriminator_lr: float
    """Adam's learning rate of the discriminators, from 0 up."""
    adam_betas: list[float]
    """Both Adams' two decays, each from 0 to below 1."""
    ema: float
    """Decay of the averaged generator, which all samples come from, in [0, 1]; 0 keeps no average."""

    # ---- with what
    precision: str
    """What to compute in: float32, bfloat16 or, with auto, bfloat16 where the hardware computes in it."""
    workers: int | None
    """Loader processes, from 0 up; null for 4 with a GPU and none on a CPU, whose cores compute."""

    # ---- what is written
    evaluated: int
    """Test captions that the table is computed on, from 2 up; a split of fewer gives what it has."""
    log_every: int
    """Steps between two lines of the log, from 1 up."""
    sample_every: int
    """Steps between two sheets of samples, from 1 up."""
    checkpoint_every: int
    """Steps between two checkpoints, from 1 up: as many are lost at most when the power goes."""

    # ---- the dual loss
    vlm: VLMSettings


def check_settings(settings: Settings) -> None:
    """Refuse what is out of range.

    Raises:
        ValueError: the message names the setting.
    """
    for name, least in _LEAST.items():
        if getattr(settings, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(settings, name)}")
    for name in ("lambda_vvm", "lambda_vlm", "vvm_start", "vvm_warmup", "vlm_start", "vlm_warmup"):
        if getattr(settings.vlm, name) < 0:
            raise ValueError(f"vlm.{name}: expected a number from 0 up, got {getattr(settings.vlm, name)}")
    # An average to which new weights count negatively grows without bound.
    if not 0 <= settings.ema <= 1:
        raise ValueError(f"ema: expected a number from 0 to 1, got {settings.ema}")
    for name in ("generator_lr", "discriminator_lr"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name}: expected a number from 0 up, got {getattr(settings, name)}")
    if not all(0 <= beta < 1 for beta in settings.adam_betas):
        raise ValueError(f"adam_betas: expected two numbers from 0 to below 1, got {list(settings.adam_betas)}")
    workers = settings.workers
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ValueError(f"workers: expected null, or a whole number from 0 up, got {workers!r}")


# ---------------------------------------------------------------------------------------------------------------------
# What a run does
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run began with, and has to find again when it is resumed; None where an earlier release did not say."""

    trained_with: list[str] | None = None
    """`marks` of every matcher whose loss trained the generator, in this run or in one that it began from."""
    matcher: str | None = None
    """The matcher's fingerprint."""
    processes: int | None = None
    """How many processes shared a step."""
    pictures: dict[str, str] | None = None
    """How many pictures there are to train and to evaluate with, and a digest of them and their captions."""
    matcher_reads: str | None = None
    """Fingerprint of how the matcher reads captions: its vocabulary is a file of its own for DAMSM's encoders."""
    text_fingerprint: str | None = None
    """The text encoder's fingerprint."""
    versions: dict[str, str] | None = None
    """Of this package and what it computes with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumed:
    """The run that is gone on with."""

    folder: Path
    """Its folder."""
    data: str | None
    """Where its data lay until now; None for the synthetic birds."""
    moved: frozenset[str]
    """Which of `MOVABLE` the command line says anew."""
    beginning: Beginning
    """What it began with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run does. All but the last part is what its `options.json` says, too."""

    # ---- what is trained, and on what
    baseline: str
    """Name of the trainer, of `find.BASELINES`."""
    settings: Settings
    """What a settings file says."""
    data: str | None
    """Folder of captioned pictures; None for the synthetic birds, which are drawn when they are not there."""
    vlm: str | None
    """The matcher whose dual loss is added; None for a plain run."""
    text_encoder: str | None
    """Of a plain run: the matcher or DAMSM text encoder that conditions the generator. None with `vlm`, whose own
    does."""
    max_words: int | None
    """Words kept of a caption; None for as many as the text encoder's own file says."""

    # ---- where it begins, how long it is
    start: str | None = None
    """A run's folder, a packaged start or a published checkpoint to begin from; None for random weights."""
    start_discriminators: bool = True
    """Take the discriminators from there, too, where there are some."""
    steps: int
    """Updates of the generator, from 0 up. Only counts without `epochs`."""
    epochs: int | None
    """Passes over the train split, from 0 up."""
    seed: int
    """Decides initial weights, order and noise; from 0 to 2 ** 32 - 1."""

    # ---- how it goes about it
    spread: bool = False
    """The table is of pictures at equal distances in the split; else of the first, as an earlier release's was."""
    skip_bad: bool = False
    """Leave out pictures that cannot be used, and list them in `skipped.txt`."""
    max_bad_steps: int = MAX_BAD_STEPS
    """As many steps in a row with NaN or infinity end the run, from 1 up; fewer are passed over."""
    precision: str
    """What it computes in: the settings' own until the hardware is known, then what auto came to, also on others."""

    # ---- this time
    out: Path = RUNS
    """Where a new run's folder is made."""
    device: str | None = None
    """cuda, cuda:NUMBER or cpu; None for the GPU where there is one."""
    resumed: Resumed | None = None
    """The run that is gone on with; None for a new one."""

    @property
    def encoder(self) -> str:
        """What `load_matcher` takes: the matcher of a dual run, the text encoder of a plain one."""
        return self.vlm or self.text_encoder

    @property
    def name(self) -> str:
        """What a new run's folder is called, after its number."""
        return f"{self.baseline}-vlm" if self.vlm else self.baseline

    def length(self, pictures: int, processes: int) -> int:
        """Steps of the whole run on so many pictures, in so many processes."""
        if self.epochs is None:
            return self.steps
        # An epoch of less than a batch is a step.
        return max(self.epochs * pictures // (self.settings.batch * processes), min(self.epochs, 1))

    def options(self, beginning: Beginning) -> dict[str, Any]:
        """Plain values for `options.json`, from which `configure` makes it again."""
        kept = {name: value for name, value in vars(self).items() if name not in ("out", "device", "resumed")}
        return kept | {"settings": self.settings.plain()} | vars(beginning)

    def named_by_run(self, *names: str) -> tuple[Path | None, dict[str, str | None]]:
        """For `may_have_moved`: a resumed run's folder, and what it names itself of these of `MOVABLE`."""
        if self.resumed is None:
            return None, {}
        names = [name for name in names if name not in self.resumed.moved]
        return self.resumed.folder, {MOVABLE[name]: getattr(self, name) for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# What the command line says
# ---------------------------------------------------------------------------------------------------------------------


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
    bad_help = (
        "pass over training steps with NaN or infinity, and stop after so many in a row "
        f"(default: {MAX_BAD_STEPS}; 1: at the first)"
    )
    add("--max-bad-steps", type=whole_number, metavar="N", help=bad_help)
    return result


def whole_number(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return int(text)


def packaged_start(folder: Path) -> Path:
    """The generator that comes with a baseline, by the baseline's folder."""
    return folder / "assets" / "birds.pt"


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
