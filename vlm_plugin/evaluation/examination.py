"""One evaluation of a generator: what it draws, what is computed, and what is written."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_plugin.data import BirdTruth, CaptionedImages, Record, find_layout
from vlm_plugin.data.images import to_bytes
from vlm_plugin.evaluation.captions import CANDIDATES, FOLDS, items, subject, with_known_words
from vlm_plugin.evaluation.distances import Inception
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.evaluation.table import Named, Table
from vlm_plugin.files import ASSETS, write_json, write_text
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.report.album import extremes, save_gallery, scored, word_maps
from vlm_plugin.report.report import write_report
from vlm_plugin.training.run_folder import versions

# The synthetic birds' second matcher: another backbone, another seed, other pictures than the one that trains.
EVALUATOR = ASSETS / "birds.evaluator.vlm.pt"
SHOWN, PER_CAPTION, ATTENTION = 8, 4, 3
RESIZE = "shorter side to 76/64 of the size, bilinear and antialiased (PIL), centre crop"


class Examination:
    """One evaluation: captions of a split, the table, and the pictures that a report shows.

    Args:
        data: the data folder.
        records: the pictures of the split.
        others: pictures of another split, for the distance between real pictures and real ones; may be none.
        image_size: side of the generated pictures.
        evaluator: the matcher that scores.
        matcher: the matcher of the training, or None.
        trained_with: see `Table`.
        truth: attributes of synthetic birds: with them the packaged judge scores too.
        split: name of the split.
        count: captions evaluated; all when left out.
        batch: pictures scored at a time; changes numbers by rounding alone.
        seed: draws noise, wrong captions and folds.
        inception: Inception with its weights, or None.
    """

    def __init__(
        self,
        data: Path,
        records: Sequence[Record],
        others: Sequence[Record],
        image_size: int,
        evaluator: Named,
        *,
        matcher: Named | None = None,
        trained_with: Collection[str] = (),
        truth: BirdTruth | None = None,
        split: str = "test",
        count: int | None = None,
        batch: int = 50,
        seed: int = 0,
        inception: Inception | None = None,
    ) -> None:
        check_counts(count, batch)
        self.data, self.split, self.seed, self.batch = data, split, seed, batch
        readers = [evaluator.vlm.vocabulary] + ([] if matcher is None else [matcher.vlm.vocabulary])
        total = sum(len(record.captions) for record in records)
        records = with_known_words(records, readers)
        self.items = items([len(record.captions) for record in records], count)
        if not self.items:
            raise ValueError(f"{data}: expected captions with words that {evaluator.name} knows, found none in {split}")
        self.images = CaptionedImages(records, image_size, train=False)
        self._others = CaptionedImages(others, image_size, train=False) if others else None
        self.subject = subject(records, self.items, truth)
        judge = Judge.load().to(evaluator.vlm.device) if truth is not None else None
        # Each picture once, however many of its captions are drawn.
        self._once = list(dict.fromkeys(item.record for item in self.items))
        self._digest = hashlib.sha256(self.subject.digest.encode())
        reference = self._digested(self._real(self._once))
        self.table = Table(self.subject, reference, evaluator, matcher, trained_with, judge, inception, seed)
        if lost := total - sum(len(record.captions) for record in records):
            note = f"{lost} of the split's {total} captions are left out: a matcher knows no word of them"
            self.table.notes.append(note)
        self._trained_with = trained_with
        # Spread over the evaluated captions: neighbours are often of one class.
        self.shown = list(range(0, len(self._once), max(len(self._once) // SHOWN, 1)))[:SHOWN]

    @property
    def captions(self) -> list[str]:
        """The captions, in the order of their pictures."""
        return self.subject.captions

    def shown_captions(self) -> list[str]:
        """The captions that grids and reports show."""
        return [self.captions[number] for number in self.shown]

    def real(self, numbers: Sequence[int]) -> Tensor:
        """`(B, 3, S, S)` real pictures of these captions."""
        return torch.stack([self.images[self.items[number].record].image for number in numbers])

    def draw_shown(self, painter: Painter) -> Tensor:
        """`(K, n, 3, S, S)`: n pictures of each shown caption, at the same noise for every generator."""
        rows = [
            painter.some([caption] * PER_CAPTION, range(-PER_CAPTION * (row + 1), -PER_CAPTION * row))
            for row, caption in enumerate(self.shown_captions())
        ]
        return torch.stack(rows)

    def add_real(self) -> None:
        """Score the real pictures; their distance is that of the other real pictures, if there are any."""
        own = self._real([item.record for item in self.items])
        others: Iterable[Tensor] = ()
        if self._others is None:
            self.table.notes.append("real: no distance, which takes real pictures of another split, and there is none")
        else:
            others = self._batches(self._others, range(len(self._others)))
        self.table.add("real", own, distance_of=others)

    def _real(self, records: Sequence[int]) -> Iterator[Tensor]:
        return self._batches(self.images, records)

    def _digested(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass pictures on, and take their pixels into the digest: they are read once."""
        for batch in batches:
            self._digest.update(to_bytes(batch).numpy())
            yield batch

    def _batches(self, images: CaptionedImages, numbers: Sequence[int]) -> Iterator[Tensor]:
        for start in range(0, len(numbers), self.batch):
            yield torch.stack([images[number].image for number in numbers[start : start + self.batch]])

    def manifest(self, generator: nn.Module, **more: object) -> dict[str, Any]:
        """Everything that the numbers depend on.

        Args:
            generator: the one that is evaluated, for its fingerprint.
            **more: further entries.

        Returns:
            Plain values. `data_digest` names the captions, and the keys and pixels of their real pictures as they are
            read: cropped and resized, 8 bits a channel.
        """
        evaluator, judge, inception = self.table.evaluator, self.table.judge, self.table.inception
        return {
            "data": self.data.name, "layout": find_layout(self.data).looks_like, "split": self.split,
            "data_digest": self._digest.hexdigest()[:16], "pictures": len(self.captions),
            "image_size": self.images.image_size, "resize": RESIZE, "seed": self.seed,
            "candidates": CANDIDATES, "folds": FOLDS,
            "evaluator": {"name": evaluator.name, "fingerprint": evaluator.vlm.fingerprint},
            "evaluator_reads": evaluator.vlm.caption_fingerprint,
            "generator": fingerprint(generator), "trained_with": sorted(self._trained_with),
            "judge": None if judge is None else fingerprint(judge),
            "inception": None if inception is None else inception.checksum,
            **more, "device": str(evaluator.vlm.device), "versions": versions(),
        }  # fmt: skip

    def album(self, painter: Painter, shown: dict[str, Tensor], last: str) -> dict[str, Any]:
        """The pictures of the report, as `gallery.save_gallery` takes them.

        Args:
            painter: draws the pictures of the row `last` again, for the best and the worst of them.
            shown: row -> pictures of `draw_shown`.
            last: the row that best, worst and attention are about.
        """
        best = worst = None
        if last in self.table.scores:
            scores = self.table.scores[last]
            best, worst = (self._row(painter, numbers, scores) for numbers in extremes(scores))
        vlm, attention = self.table.evaluator.vlm, []
        if hasattr(vlm.image_encoder, "grid"):
            for number in self.shown[:ATTENTION]:
                fake = painter.some([self.captions[number]], [number])[0]
                attention.append(word_maps(vlm, self.captions[number], self.real([number])[0], fake))
        real = {"real": self.real(self.shown)[:, None]}
        return {
            "captions": self.shown_captions(), "pictures": real | shown, "best": best, "worst": worst,
            "attention": attention,
        }  # fmt: skip

    def write(self, folder: Path, manifest: dict[str, Any], album: dict[str, Any]) -> list[str]:
        """Write evaluation.json, evaluation.md, report.pt and report.html; earlier ones: see `keep_results`.

        Args:
            folder: where to.
            manifest: of `manifest`.
            album: of `album`.

        Returns:
            Names of the files.
        """
        # The notes may name a file that is no valid UTF-8.
        table = self.table.text_table() + "\n"
        write_text(table, folder / "evaluation.md", "backslashreplace")
        write_json(self.table.content(manifest), folder / "evaluation.json")
        save_gallery(folder / "report.pt", **album)
        write_report([folder], folder / "report.html")
        return ["evaluation.md", "evaluation.json", "report.html"]

    def _row(self, painter: Painter, numbers: Sequence[int], scores: Tensor) -> dict[str, Any]:
        captions = [self.captions[number] for number in numbers]
        return scored(captions, painter.some(captions, numbers), scores[numbers])


def check_counts(count: int | None, batch: int) -> None:
    """Refuse an evaluation of nothing with a ValueError that names the argument."""
    for name, value in (("count", count), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def keep_results(folder: Path) -> None:
    """Put earlier results aside under the next number that is free for all of them: what has one number is one's.

    It is called when the new ones are there to be written: what ends before leaves the earlier ones as they are.
    """
    paths = [folder / name for name in ("evaluation.json", "evaluation.md", "report.pt", "report.html", "pictures")]
    # Pictures without captions.csv were not written here: they may be somebody's data.
    there = [path for path in paths if path.is_file() or (path / "captions.csv").is_file()]
    if not there:
        return
    number = 1
    while any(path.with_stem(f"{path.stem}-{number}").exists() for path in paths):
        number += 1
    for path in there:
        path.rename(path.with_stem(f"{path.stem}-{number}"))
    print(f"{folder}: earlier results are kept as evaluation-{number}.json and so on", flush=True)


def choose_evaluator(name: str | Path | None, truth: BirdTruth | None, matcher: Named | None) -> Named:
    """The matcher that scores: the named one, else for synthetic birds the packaged one that trains no generator, else
    the training's own.

    Raises:
        ValueError: there is none.
        FileNotFoundError: no file of that name.
    """
    if name is None and truth is not None:
        name = EVALUATOR
    if name is not None:
        return Named(Path(name).name, load_matcher(str(name)))
    if matcher is None:
        raise ValueError("--evaluator: expected a matcher's file: nothing says which one belongs to this generator")
    return matcher
