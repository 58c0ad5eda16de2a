"""One evaluation of a generator: its captions, its table, its manifest, and what a report shows of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_plugin.data import CaptionedImages, find_layout
from vlm_plugin.data.images import to_bytes
from vlm_plugin.evaluation.captions import items, subject, with_known_words
from vlm_plugin.evaluation.distances import FOLDS
from vlm_plugin.evaluation.measure import CANDIDATES
from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.evaluation.scorers import Scorers
from vlm_plugin.evaluation.split import Split
from vlm_plugin.evaluation.table import Table
from vlm_plugin.files import write_json, write_text
from vlm_plugin.matcher.choose import TOLERATED_UNKNOWN, unknown_words
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.report.album import extremes, save_gallery, scored, word_maps
from vlm_plugin.report.report import write_report
from vlm_plugin.training.run_folder import versions

# What a report shows: captions, pictures of each, and captions with what the matcher looks at.
CAPTIONS_SHOWN, PER_CAPTION, ATTENTION = 8, 4, 3
RESIZE = "shorter side to 76/64 of the size, bilinear and antialiased (PIL), centre crop"


class Examination:
    """One evaluation: captions of a split, the table, and the pictures that a report shows.

    Args:
        split: the real pictures.
        scorers: who scores.
        image_size: side of the generated pictures.
        count: captions evaluated; all when left out.
        batch: pictures scored at a time; changes numbers by rounding alone.
        seed: draws wrong captions and folds.

    Raises:
        ValueError: a count or batch below 1, or no caption that the matchers know a word of.
    """

    def __init__(
        self,
        split: Split,
        scorers: Scorers,
        image_size: int,
        *,
        count: int | None = None,
        batch: int = 50,
        seed: int = 0,
    ) -> None:
        check_counts(count, batch)
        self.split, self.scorers, self.batch, self.seed = split, scorers, batch, seed
        named = [matcher for matcher in (scorers.matcher, scorers.evaluator) if matcher is not None]
        # One vocabulary may belong to both.
        self._readers = {matcher.vlm.vocabulary: matcher.name for matcher in named}
        records = with_known_words(split.records, list(self._readers))
        self.items = items([len(record.captions) for record in records], count)
        if not self.items:
            name = scorers.evaluator.name
            raise ValueError(
                f"{split.data}: expected captions with words that {name} knows, found none in {split.name}"
            )
        self.images = CaptionedImages(records, image_size, train=False)
        self._others = CaptionedImages(split.others, image_size, train=False) if split.others else None
        self.subject = subject(records, self.items, split.truth)
        # Each picture once, however many of its captions are drawn.
        self._once = list(dict.fromkeys(item.record for item in self.items))
        self._digest = hashlib.sha256(self.subject.digest.encode())
        self.table = Table(self.subject, self._digested(self._real(self._once)), scorers, seed)
        total, kept = (sum(len(record.captions) for record in those) for those in (split.records, records))
        if total > kept:
            note = f"{total - kept} of the split's {total} captions are left out: a matcher knows no word of them"
            self.table.notes.append(note)
        if split.lost:
            note = f"{len(split.lost)} of the split's pictures are left out, as they cannot be read"
            self.table.notes.append(f"{note} (the first: {split.lost[0]})")
        # Spread over the evaluated captions: neighbours are often of one class.
        step = max(len(self._once) // CAPTIONS_SHOWN, 1)
        self.shown = list(range(0, len(self._once), step))[:CAPTIONS_SHOWN]

    @property
    def captions(self) -> list[str]:
        """The captions, in the order of their pictures."""
        return self.subject.captions

    def tell_unknown_words(self) -> None:
        """Print how many words of the captions each matcher does not know, where they are not few."""
        for vocabulary, name in self._readers.items():
            if told := unknown_words(self.captions, vocabulary, name, TOLERATED_UNKNOWN):
                print(told, flush=True)

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
        data, split, evaluator = self.split.data, self.split.name, self.scorers.evaluator
        judge, inception = self.scorers.judge, self.scorers.inception
        return {
            "data": data.name, "layout": find_layout(data).looks_like, "split": split,
            "data_digest": self._digest.hexdigest()[:16], "pictures": len(self.captions),
            "image_size": self.images.image_size, "resize": RESIZE, "seed": self.seed,
            "candidates": CANDIDATES, "folds": FOLDS,
            "evaluator": {"name": evaluator.name, "fingerprint": evaluator.vlm.fingerprint},
            "evaluator_reads": evaluator.vlm.caption_fingerprint,
            "generator": fingerprint(generator), "trained_with": sorted(self.scorers.trained_with),
            "judge": None if judge is None else fingerprint(judge),
            "inception": None if inception is None else inception.checksum,
            **more, "device": str(evaluator.vlm.device), "versions": versions(),
        }  # fmt: skip

    def album(self, painter: Painter, shown: dict[str, Tensor], last: str) -> dict[str, Any]:
        """The pictures of the report, as `save_gallery` takes them.

        Args:
            painter: draws the pictures of the row `last` again, for the best and the worst of them.
            shown: row -> pictures of `draw_shown`.
            last: the row that best, worst and attention are about.
        """
        best = worst = None
        if last in self.table.scores:
            scores = self.table.scores[last]
            best, worst = (self._row(painter, numbers, scores) for numbers in extremes(scores))
        vlm, attention = self.scorers.evaluator.vlm, []
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
