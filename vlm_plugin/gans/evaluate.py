"""Evaluates a generator on every test caption, in one pass, with a manifest that lets anyone repeat the numbers."""

from __future__ import annotations

import contextlib
import csv
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from vlm_plugin.data import Records, find_layout, find_truth, make_birds
from vlm_plugin.data.birds.make import BIRDS, BIRDS_FOLDER
from vlm_plugin.data.images import to_image
from vlm_plugin.evaluation.captions import other_pictures, usable_records
from vlm_plugin.evaluation.distances import Inception
from vlm_plugin.evaluation.examination import Examination, check_counts, choose_evaluator, keep_results
from vlm_plugin.evaluation.table import Named
from vlm_plugin.files import check_writable
from vlm_plugin.gans.config import may_have_moved
from vlm_plugin.gans.find import find_networks, painter_of
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.matcher.choose import TOLERATED_UNKNOWN, is_packaged, load_matcher, marks, unknown_words
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import new_run_folder
from vlm_plugin.training.skipped import open_records
from vlm_plugin.training.stream import check_seed

# What the report shows of a run besides its numbers.
_OF_TRAINING = ("log.jsonl", "options.json")


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
    check_seed(seed)
    check_counts(count, batch)
    source = Path(source)
    place = choose_device(device)
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
    records, lost = open_records(data, split, skip_bad)
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
        if told := unknown_words(examination.captions, vocabulary, name, TOLERATED_UNKNOWN):
            print(told, flush=True)
    if lost:
        left_out = f"{len(lost)} of the split's pictures are left out, as they cannot be read"
        examination.table.notes.append(f"{left_out} (the first: {lost[0]})")
    examination.add_real()
    label = source.absolute().name
    drawn = painter.all(examination.captions, batch)
    drawn = progress(drawn, total=-(-len(examination.captions) // batch), desc="drawing")
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
            return open_records(data, name, skip_bad)[0]
    return Records()


def _folder(source: Path, out: str | Path | None, trainer: type[Trainer]) -> Path:
    if out is None and not source.is_dir():
        return new_run_folder("runs", f"{trainer.name.lower()}-evaluation")
    folder = Path(out or source)
    if (folder / "checkpoint.pt").exists() and not (source.is_dir() and folder.samefile(source)):
        raise ValueError(f"--out {folder}: expected a folder for the results of {source}, got that of another run")
    check_writable(folder / "evaluation.json")
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
