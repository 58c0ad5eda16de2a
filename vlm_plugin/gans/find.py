"""Baselines by name, and a run's networks from its folder or a checkpoint."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.features import Features
from vlm_plugin.gans.saved import Saved
from vlm_plugin.gans.trainer import Trainer, scaled
from vlm_plugin.matcher.vlm import VLM

# Which class of which module trains what: nothing else is ever imported by name.
BASELINES = {"attngan": "AttnGAN", "dfgan": "DFGAN"}


class Baseline(NamedTuple):
    """A trainer and what belongs to it."""

    name: str
    """One of `BASELINES`."""
    folder: Path
    """Where its `cfg/` and `assets/` lie."""
    trainer: type[Trainer]

    @property
    def start(self) -> Path:
        """Its packaged start: networks that draw synthetic birds already."""
        return self.folder / "assets" / "birds.pt"


def baseline(name: str) -> Baseline:
    """The baseline called `name`, wherever the package is installed.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline: expected one of {', '.join(BASELINES)}, got {name!r}")
    module = importlib.import_module(f"vlm_plugin.baselines.{name}.trainer")
    return Baseline(name, Path(module.__file__).parent, getattr(module, BASELINES[name]))


def find_source(name: str | Path) -> Path:
    """What a user means by a generator: a run's folder or a file; a baseline's bare name is its packaged start.

    A run or file of that name in the working folder comes first.
    """
    path = Path(name)
    if str(path) not in BASELINES or path.is_file() or (path / "options.json").is_file():
        return path
    return baseline(str(path)).start


def find_networks(source: Path, averaged: bool = True) -> tuple[type[Trainer], Saved]:
    """The baseline that a run's folder or a checkpoint belongs to, and its networks.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: no baseline here reads it; the message has each one's reason.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected a run's folder or a checkpoint, found nothing there")
    reasons: dict[str, str] = {}
    for name in BASELINES:
        trainer = baseline(name).trainer
        try:
            return trainer, trainer.read(source, discriminators=False, averaged=averaged)
        except (ValueError, FileNotFoundError) as error:
            reasons[name] = str(error)
    if len(set(reasons.values())) == 1:  # it is no matter of the baseline
        raise ValueError(reasons[name])
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ValueError(f"{source}: expected a run's folder or a checkpoint of a baseline ({told})")


def painter_of(
    generator: nn.Module, saved: Saved, matcher: VLM, seed: int = 0, truncation: float | None = None
) -> Painter:
    """What draws captions with a generator that `find_networks` found.

    Args:
        generator: the network, built and filled.
        saved: what the file or the run's folder says of it.
        matcher: encodes the captions, as it did in training.
        seed: decides the noise.
        truncation: see `Painter`.
    """

    def draw(noise: Tensor, text: Features) -> Tensor:
        return generator.draw(noise, scaled(text) if saved.normalise_text else text)[0]

    return Painter(draw, matcher, generator.noise_dim, seed=seed, truncation=truncation)
