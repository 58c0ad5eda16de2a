"""What a training run shows: table, grids, curves and attention, from the test split at fixed noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor

from vlm_plugin import VLM, distributed
from vlm_plugin.data import BirdTruth, CaptionedImages, Record, Sample, collate, open_split, true_pairs
from vlm_plugin.data.birds import said_by
from vlm_plugin.tools import pictures, training
from vlm_plugin.tools.evaluation import Table
from vlm_plugin.tools.judge import Judge
from vlm_plugin.tools.trainer import Trainer
from vlm_plugin.vocabulary import Vocabulary

SHOWN, PER_CAPTION = 8, 4
# A Frechet distance takes two pictures of either side.
LEAST = 2


class Show:
    """The run's table and pictures, made from the test split at fixed noise."""

    def __init__(
        self,
        run_folder: Path,
        data: Path,
        truth: BirdTruth | None,
        matcher: VLM,
        options: dict[str, Any],
        settings: EasyDict,
        trainer: Trainer,
        left_out: training.LeftOut,
    ) -> None:
        self.folder, self.data, self.matcher = run_folder, data, matcher
        self.settings, self.trainer, self.options = settings, trainer, options
        self.truth = truth
        # Now and not at the end: a missing file should not cost a whole run.
        self.judge = Judge.load().to(matcher.device) if truth is not None else None
        self.left_out = left_out
        self.real = collate(self._load("test", open_split(data, "test")[: settings.evaluated], matcher.vocabulary))
        count = len(self.real.captions)
        # Spread over the split: neighbours are often of one class.
        self.shown = list(range(0, count, max(count // SHOWN, 1)))[:SHOWN]

    def remember(self, name: str) -> None:
        """Keep the generator's present pictures, also across a kill."""
        if distributed.rank() == 0:
            content = {"pictures": self._generate().half(), "shown": self._generate_shown().half()}
            training.save_atomically(content, self.folder / f"{name}.pt")

    def grid(self, name: str, path: Path) -> None:
        """A captioned grid of the present generator at the fixed noise."""
        pictures.sample_sheet(path, self._captions(), {"real": self._real(), name: list(self._generate_shown())})

    def finish(self) -> None:
        """Print the table, and write it and the pictures."""
        before = torch.load(self.folder / "before.pt", weights_only=True)
        after, after_shown = self._generate(), self._generate_shown()
        count = len(self.real.captions)
        others = collate(self._load("train", open_split(self.data, "train")[-count:], None))
        written = ["samples.png"]
        if min(count, len(others.captions)) < LEAST:
            print(
                f"no table: expected {LEAST} pictures of the test and of the train split, got {count} and "
                f"{len(others.captions)}",
                flush=True,
            )
        else:
            self._write_table({"before": before["pictures"].float(), "after": after}, others.images)
            written = ["results.md", "results.json", *written]
        pictures.sample_sheet(
            self.folder / "samples.png",
            self._captions(),
            {"real": self._real(), "before": list(before["shown"].float()), "after": list(after_shown)},
        )
        if rows := training.Log.read(self.folder / "log.jsonl"):
            pictures.loss_curves(self.folder / "curves.png", rows)
            written.append("curves.png")
        if hasattr(self.matcher.image_encoder, "grid"):
            # Three captions, each on its real picture and on the generated one.
            rows = [i for i in self.shown[:3] for _ in range(2)]
            both = torch.stack([(after if n % 2 else self.real.images)[i] for n, i in enumerate(rows)])
            captions = [self.real.captions[i] for i in rows]
            place = self.matcher.device
            pictures.attention_sheet(self.folder / "attention.png", self.matcher, both.to(place), captions)
            written.append("attention.png")
        print(f"written to {self.folder}: {', '.join(written)}", flush=True)

    def _load(self, split: str, records: Sequence[Record], vocabulary: Vocabulary | None) -> list[Sample]:
        images = CaptionedImages(records, self.trainer.image_size, train=False, vocabulary=vocabulary)
        samples, skipped = training.usable_samples(images, self.options["skip_bad"])
        if skipped and distributed.rank() == 0:
            print(f"left out {len(skipped)} of {len(images)} pictures of the {split} split", flush=True)
        self.left_out.add(skipped)
        return samples

    def _write_table(self, generated: dict[str, Tensor], others: Tensor) -> None:
        table = self._table()
        table.add("real", self.real.images, distance_of=others)
        for name, images in generated.items():
            table.add(name, images)
        text = table.text_table()
        print("\n" + text + "\n", flush=True)
        (self.folder / "results.md").write_text(text + "\n", encoding="utf-8")
        training.write_json(
            {
                "rows": table.rows, "columns": table.describe(), "captions": len(self.real.captions),
                "data": self.data.name, "matcher": self.matcher.fingerprint, "circular": table.circular,
                "options": self.options, "versions": training.versions(),
            },
            self.folder / "results.json",
        )  # fmt: skip

    def _table(self) -> Table:
        captions = self.real.captions
        if self.truth is not None:
            mismatched = ~true_pairs(self.truth.pictures(self.real.keys), *said_by(captions))
        else:
            mismatched = self.real.class_ids[:, None] != self.real.class_ids[None, :]
        circular = self.options["vlm"] or self.trainer.learns_from_matcher
        trained_with = self.matcher.fingerprint if circular else None
        return Table(captions, mismatched, self.real.images, self.matcher, trained_with, self.judge)

    def _captions(self) -> list[str]:
        return [self.real.captions[i] for i in self.shown]

    def _real(self) -> list[Tensor]:
        return [self.real.images[i][None] for i in self.shown]

    def _generate(self) -> Tensor:
        """`(N, 3, S, S)`, one picture of each test caption."""
        parts = []
        for start in range(0, len(self.real.captions), 50):
            captions = self.real.captions[start : start + 50]
            noise = training.noise((len(captions), self.trainer.noise_dim), self.matcher.device, 1, start)
            parts.append(self._sample(noise, captions))
        return torch.cat(parts)

    def _generate_shown(self) -> Tensor:
        """`(R, K, 3, S, S)`, K pictures of each shown caption."""
        noise = training.noise((len(self.shown), PER_CAPTION, self.trainer.noise_dim), self.matcher.device, 2)
        return torch.stack([self._sample(z, [c] * len(z)) for z, c in zip(noise, self._captions(), strict=True)])

    @torch.no_grad()
    def _sample(self, noise: Tensor, captions: Sequence[str]) -> Tensor:
        return self.trainer.sample(noise, self.matcher.encode_text(captions)).float().cpu()
