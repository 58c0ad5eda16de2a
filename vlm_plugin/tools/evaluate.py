"""Evaluates a generator on every test caption, in one pass, with a manifest that lets anyone repeat the numbers."""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlm_plugin.data import Records, find_layout, find_truth, make_birds
from vlm_plugin.features import Features
from vlm_plugin.model import VLM
from vlm_plugin.tools import training
from vlm_plugin.tools.command_line import name_or_path, user_path
from vlm_plugin.tools.drawing import Painter
from vlm_plugin.tools.evaluation import Inception, Named
from vlm_plugin.tools.examination import (
    Examination,
    check_counts,
    choose_evaluator,
    keep_results,
    other_pictures,
    usable_records,
)
from vlm_plugin.tools.gan import BIRDS, BIRDS_FOLDER
from vlm_plugin.tools.matchers import FEW, is_packaged, load_matcher, marks, unknown_words
from vlm_plugin.tools.pictures import to_image
from vlm_plugin.tools.trainer import Saved, Trainer, may_have_moved, scaled

# What the report shows of a run besides its numbers.
_OF_TRAINING = ("log.jsonl", "options.json")

# Which class of which module trains what: nothing else is ever imported by name.
_TRAINERS = {"attngan": "AttnGAN", "dfgan": "DFGAN"}


def evaluate(
    source: str | Path,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    split: str = "test",
    count: int | None = None,
    batch: int = 50,
    seed: int = 0,
    truncation: float | None = None,
    averaged: bool = True,
    evaluator: str | Path | None = None,
    inception: str | Path | None = None,
    text_encoder: str | None = None,
    pictures: bool = False,
    skip_bad: bool = False,
    device: str | None = None,
) -> Path:
    """Draw every caption of a split and compute every number in one pass.

    Args:
        source: a run's folder, a packaged start, or a published checkpoint.
        data: folder of captioned pictures; the run's own (else the synthetic birds) when left out.
        out: folder for the results; the run's own, or a new one in runs/ for a file, when left out. Results that
            lie there already, and their pictures, are kept under a numbered name. Another folder also gets the run's
            log and settings, for the report.
        split: which split's captions.
        count: how many captions, see `items`; all when left out.
        batch: pictures at a time; changes numbers by rounding alone.
        seed: draws noise, wrong captions and folds.
        truncation: cuts the noise off at plus and minus this.
        averaged: use the averaged generator, where a run holds two.
        evaluator: file of a matcher; see `choose_evaluator`.
        inception: file of Inception's weights, for FID, KID and Inception Score.
        text_encoder: the matcher or DAMSM text encoder that conditions the generator, where `source` does not say.
        pictures: also write every picture, with captions.csv beside them.
        skip_bad: leave out pictures of the data that cannot be read. For a run trained so they are in any case.
        device: the GPU when left out, where there is one.

    Returns:
        The folder.

    Raises:
        BadSampleError: a picture cannot be read, and `skip_bad` is off. The message names it.
        OSError, ValueError: the message names the argument or file.
    """
    training.check_seed(seed)
    check_counts(count, batch)
    source = Path(source)
    place = training.choose_device(device)
    trainer, saved = find_networks(source, averaged)
    name = text_encoder or saved.matcher
    if name is None:
        raise ValueError(f"--text-encoder: {source} does not say which text encoder it was trained with; name its file")
    if data is None and saved.data is None:
        if not is_packaged(name):
            raise ValueError(
                f"--data: expected a folder of captioned pictures for the text encoder {name}, got none, and the "
                "synthetic birds are drawn for the packaged one alone"
            )
        make_birds(BIRDS_FOLDER, **BIRDS, progress=True)
    with may_have_moved(source, {"--data DIR": None if data else saved.data}):
        data = Path(data or saved.data or BIRDS_FOLDER)
        find_layout(data)
    truth = find_truth(data)
    # The run's data may have moved, and with it a DAMSM encoder's vocabulary.
    own = saved.data if saved.data is not None and saved.data.is_dir() else data
    with may_have_moved(source, {"--text-encoder FILE": None if text_encoder else name}):
        conditioning = load_matcher(name, own, place)
    conditioning.max_words = saved.max_words or conditioning.max_words
    saved.check(conditioning, str(source))
    generator = trainer.load_generator(saved, str(source)).to(place).eval()
    matcher = Named(Path(name).name, conditioning)
    examiner = choose_evaluator(evaluator, truth, matcher)
    examiner.vlm.to(place)
    trained_with = saved.trained_with or (marks(conditioning) if trainer.learns_from_matcher else frozenset())

    painter = painter_of(generator, saved, conditioning, seed=seed, truncation=truncation)
    skip_bad = skip_bad or saved.skip_bad
    records, lost = training.open_records(data, split, skip_bad)
    others = other_pictures(_others(data, split, skip_bad), min(len(records), count or len(records)), truth)
    network = None if inception is None else Inception(inception).to(place)
    # Last of what may be refused, since it makes the folder, yet before any picture is read: it may not be writable.
    folder = _folder(source, out, trainer)
    if pictures:
        _check_free(folder / "pictures")
    size = painter.size()
    if skip_bad:
        records, unreadable = usable_records(records, size, True)
        lost += unreadable
        if others:
            others, _ = usable_records(others, size, True)
    examination = Examination(
        data, records, others, size, examiner,
        matcher=matcher, trained_with=trained_with, truth=truth, split=split, count=count, batch=batch, seed=seed,
        inception=network,
    )  # fmt: skip
    # A vocabulary that both have is told of once.
    for vocabulary, name in {conditioning.vocabulary: matcher.name, examiner.vlm.vocabulary: examiner.name}.items():
        if told := unknown_words(examination.captions, vocabulary, name, FEW):
            print(told, flush=True)
    if lost:
        left_out = f"{len(lost)} of the split's pictures are left out, as they cannot be read"
        examination.table.notes.append(f"{left_out} (the first: {lost[0]})")
    examination.add_real()
    label = source.absolute().name
    drawn = painter.all(examination.captions, batch)
    drawn = training.progress(drawn, total=-(-len(examination.captions) // batch), desc="drawing")
    aside = (
        tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) if pictures else contextlib.nullcontext(folder)
    )
    with aside as unfinished:
        fresh = Path(unfinished) / "pictures"
        examination.table.add(label, _written(drawn, fresh, examination.captions) if pictures else drawn)
        manifest = examination.manifest(generator, truncation=truncation, ema=averaged if source.is_dir() else None)
        album = examination.album(painter, {label: examination.draw_shown(painter)}, label)
        keep_results(folder)
        if pictures:
            fresh.rename(folder / "pictures")
    if source.is_dir() and not folder.samefile(source):
        for name in _OF_TRAINING:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    written = examination.write(folder, manifest, album)
    print("\n" + examination.table.text_table() + "\n")
    print(f"written to {folder}: {', '.join(written)}", flush=True)
    return folder


def _others(data: Path, split: str, skip_bad: bool) -> Records:
    """Pictures of another split, for the distance between real pictures and real ones; none where there is none."""
    own = find_layout(data).splits(data)
    for name in ("train", "test", "validation"):
        # Without a test split a part of train is one.
        if name != split and (name in own or (name == "test" and "train" in own)):
            return training.open_records(data, name, skip_bad)[0]
    return Records()


def find_networks(source: Path, averaged: bool = True) -> tuple[type[Trainer], Saved]:
    """The baseline that a run's folder or a checkpoint belongs to, and its networks.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: no baseline here reads it; the message has each one's reason.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected a run's folder or a checkpoint, found nothing there")
    reasons: dict[str, str] = {}
    for name in _TRAINERS:
        trainer = _trainer(name)
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


def _trainer(name: str) -> type[Trainer]:
    """The trainers lie in the repository, not in the installed package."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "baselines" / name / "trainer.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return getattr(importlib.import_module(f"baselines.{name}.trainer"), _TRAINERS[name])
    raise FileNotFoundError(
        f"baselines/{name}/trainer.py: expected in this folder: run it from the repository's folder"
    )


def _folder(source: Path, out: str | Path | None, trainer: type[Trainer]) -> Path:
    if out is None and not source.is_dir():
        return training.new_run_folder("runs", f"{trainer.name.lower()}-evaluation")
    folder = Path(out or source)
    if (folder / "checkpoint.pt").exists() and not (source.is_dir() and folder.samefile(source)):
        raise ValueError(f"--out {folder}: expected a folder for the results of {source}, got that of another run")
    training.check_writable(folder / "evaluation.json")
    return folder


def _check_free(pictures: Path) -> None:
    """Refuse to write pictures where somebody else's are; those of an earlier evaluation make room."""
    if pictures.exists() and not (pictures / "captions.csv").is_file():
        raise FileExistsError(
            f"{pictures}: expected no such folder, or that of an earlier evaluation, got one without captions.csv: "
            "move it away, or name another place with --out"
        )


def _written(batches: Iterable[Tensor], folder: Path, captions: Sequence[str]) -> Iterator[Tensor]:
    """Pass pictures on, and write each into a new folder, with a captions.csv that `vlm-plugin score` reads."""
    folder.mkdir()
    # Captions may hold lone surrogates, as may anything out of JSON.
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with (folder / "captions.csv").open("w", **how) as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "caption"))
        number = 0
        for batch in batches:
            for picture in batch:
                name = f"{number:06d}.png"
                to_image(picture).save(folder / name)
                rows.writerow((name, captions[number]))
                number += 1
            yield batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin evaluate`."""
    add = parser.add_argument
    source_help = "a run's folder, a packaged start or a published checkpoint"
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
    evaluate(options.pop("source"), options.pop("data"), **options)
