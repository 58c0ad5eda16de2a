"""Evaluates a generator on every test caption, in one pass, with a manifest that lets anyone repeat the numbers."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from vlm_plugin.data import BirdTruth, find_layout, find_truth, make_birds
from vlm_plugin.data.birds.make import BIRDS, BIRDS_FOLDER
from vlm_plugin.evaluation.distances import Inception
from vlm_plugin.evaluation.examination import Examination, check_counts
from vlm_plugin.evaluation.folder import check_pictures, new_results, written
from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.evaluation.scorers import Named, Scorers, choose_evaluator, choose_judge
from vlm_plugin.evaluation.split import open_evaluated, readable
from vlm_plugin.files import check_writable
from vlm_plugin.gans.config import may_have_moved
from vlm_plugin.gans.find import find_networks, painter_of
from vlm_plugin.gans.saved import Saved
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.matcher.choose import is_packaged, load_matcher, marks
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import new_run_folder, only_writer
from vlm_plugin.training.stream import check_seed

# What the report shows of a run besides its numbers.
_OF_TRAINING = ("log.jsonl", "options.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How a generator is evaluated."""

    # ---- what is drawn
    data: str | Path | None = None
    """Folder of captioned pictures; the run's own (else the synthetic birds) when left out."""
    split: str = "test"
    """Which split's captions."""
    count: int | None = None
    """How many captions, see `items`; all when left out."""
    seed: int = 0
    """Draws noise, wrong captions and folds."""
    truncation: float | None = None
    """Cuts the noise off at plus and minus this."""
    averaged: bool = True
    """Use the averaged generator, where a run holds two."""
    text_encoder: str | None = None
    """The matcher or DAMSM text encoder that conditions the generator, where its file does not say."""
    skip_bad: bool = False
    """Leave out pictures of the data that cannot be read. For a run trained so they are in any case."""

    # ---- who scores it
    evaluator: str | Path | None = None
    """File of a matcher; see `choose_evaluator`."""
    inception: str | Path | None = None
    """File of Inception's weights, for FID, KID and Inception Score."""
    batch: int = 50
    """Pictures at a time; changes numbers by rounding alone."""
    device: str | None = None
    """The GPU when left out, where there is one."""

    # ---- what is written
    out: str | Path | None = None
    """Folder for the results; the run's own, or a new one in runs/ for a file, when left out. Results that lie there
    already, and their pictures, are kept under a numbered name. Another folder also gets the run's log and settings,
    for the report."""
    pictures: bool = False
    """Also write every picture, with captions.csv beside them."""


class Evaluated(NamedTuple):
    """A generator and all that its pictures depend on."""

    trainer: type[Trainer]
    saved: Saved
    generator: nn.Module
    matcher: Named
    """What conditions it."""
    data: Path
    truth: BirdTruth | None
    """The attributes of synthetic birds; None for other data."""

    def trained_with(self) -> frozenset[str]:
        """`marks` of the matchers that trained it."""
        if self.saved.trained_with:
            return self.saved.trained_with
        return marks(self.matcher.vlm) if self.trainer.learns_from_matcher else frozenset()


def evaluate(source: str | Path, data: str | Path | None = None, **options: object) -> Path:
    """Draw every caption of a split and compute every number in one pass.

    Args:
        source: a run's folder, a packaged start, or a published checkpoint.
        data: folder of captioned pictures; the run's own (else the synthetic birds) when left out.
        **options: whatever else there is to choose, each by its name in `EvaluateSettings`.

    Returns:
        The folder of the results.

    Raises:
        BadSampleError: a picture cannot be read, and `skip_bad` is off. The message names it.
        OSError, ValueError: the message names the argument or file.
    """
    settings = EvaluateSettings(data=data, **options)
    check_seed(settings.seed)
    check_counts(settings.count, settings.batch)
    source, device = Path(source), choose_device(settings.device)
    found = load_generator(source, settings, device)
    evaluator = choose_evaluator(settings.evaluator, found.truth, found.matcher)
    evaluator.vlm.to(device)
    painter = painter_of(
        found.generator, found.saved, found.matcher.vlm, seed=settings.seed, truncation=settings.truncation
    )
    skip_bad = settings.skip_bad or found.saved.skip_bad
    split = open_evaluated(found.data, settings.split, found.truth, count=settings.count, skip_bad=skip_bad)
    inception = None if settings.inception is None else Inception(settings.inception).to(device)
    # Last of what may be refused, since it makes the folder, yet before any picture is read: it may not be writable.
    folder = _folder(source, settings.out, found.trainer)
    with only_writer(folder, "evaluating into it"):
        if settings.pictures:
            check_pictures(folder)
        size = painter.size()
        if skip_bad:
            split = readable(split, size)
        judge = choose_judge(found.truth, device)
        scorers = Scorers(evaluator, found.matcher, found.trained_with(), judge, inception)
        examination = Examination(
            split, scorers, size, count=settings.count, batch=settings.batch, seed=settings.seed
        )  # fmt: skip
        examination.tell_unknown_words()
        examination.add_real()
        _draw(examination, found.generator, painter, source, folder, settings)
    return folder


def load_generator(source: Path, settings: EvaluateSettings, device: torch.device) -> Evaluated:
    """A generator with the matcher and the data that belong to it.

    Args:
        source: a run's folder or a checkpoint.
        settings: may say where the data and the text encoder are.
        device: where to compute.

    Raises:
        OSError, ValueError: the message names the argument or file.
    """
    trainer, saved = find_networks(source, settings.averaged)
    text_encoder = settings.text_encoder or saved.matcher
    if text_encoder is None:
        raise ValueError(f"--text-encoder: {source} does not say which text encoder it was trained with; name its file")
    data = _data(source, settings, saved, text_encoder)
    truth = find_truth(data)
    # The run's data may have moved, and with it a DAMSM encoder's vocabulary.
    own = saved.data if saved.data is not None and saved.data.is_dir() else data
    with may_have_moved(source, {"--text-encoder FILE": None if settings.text_encoder else text_encoder}):
        matcher = load_matcher(text_encoder, own, device)
    matcher.max_words = saved.max_words or matcher.max_words
    saved.check(matcher, str(source))
    generator = trainer.load_generator(saved, str(source)).to(device).eval()
    return Evaluated(trainer, saved, generator, Named(Path(text_encoder).name, matcher), data, truth)


def _data(source: Path, settings: EvaluateSettings, saved: Saved, text_encoder: str) -> Path:
    """The data folder: the named one, else the run's own, else that of the synthetic birds, drawn where they lack."""
    if settings.data is None and saved.data is None:
        if not is_packaged(text_encoder):
            raise ValueError(
                f"--data: expected a folder of captioned pictures for the text encoder {text_encoder}, got none, and "
                "the synthetic birds are drawn for the packaged one alone"
            )
        make_birds(BIRDS_FOLDER, **BIRDS, progress=True)
    with may_have_moved(source, {"--data DIR": None if settings.data else saved.data}):
        data = Path(settings.data or saved.data or BIRDS_FOLDER)
        find_layout(data)
    return data


def _folder(source: Path, out: str | Path | None, trainer: type[Trainer]) -> Path:
    if out is None and not source.is_dir():
        return new_run_folder("runs", f"{trainer.name.lower()}-evaluation")
    folder = Path(out or source)
    if (folder / "checkpoint.pt").exists() and not (source.is_dir() and folder.samefile(source)):
        raise ValueError(f"--out {folder}: expected a folder for the results of {source}, got that of another run")
    check_writable(folder / "evaluation.json")
    return folder


def _draw(
    examination: Examination,
    generator: nn.Module,
    painter: Painter,
    source: Path,
    folder: Path,
    settings: EvaluateSettings,
) -> None:
    """Draw every caption, score the pictures as they come, write and print the results."""
    captions, label = examination.captions, source.absolute().name
    steps = -(-len(captions) // settings.batch)
    drawn = progress(painter.all(captions, settings.batch), total=steps, desc="drawing")
    with new_results(folder, settings.pictures) as fresh:
        examination.table.add(label, drawn if fresh is None else written(drawn, fresh, captions))
        manifest = examination.manifest(
            generator, truncation=settings.truncation, ema=settings.averaged if source.is_dir() else None
        )
        album = examination.album(painter, {label: examination.draw_shown(painter)}, label)
    if source.is_dir() and not folder.samefile(source):
        for name in _OF_TRAINING:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    files = examination.write(folder, manifest, album)
    print("\n" + examination.table.text_table() + "\n")
    print(f"written to {folder}: {', '.join(files)}", flush=True)
