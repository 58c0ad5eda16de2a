"""What a training run shows: table, report, grids, curves and attention, from the test split at fixed noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlm_plugin import distributed
from vlm_plugin.data import Record, Records
from vlm_plugin.data.images import from_bytes, to_bytes
from vlm_plugin.evaluation.captions import spread
from vlm_plugin.evaluation.examination import ATTENTION, Examination
from vlm_plugin.evaluation.folder import keep_results
from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.evaluation.scorers import Named, Scorers, choose_evaluator, choose_judge
from vlm_plugin.evaluation.split import Split, other_pictures, usable_records
from vlm_plugin.files import read_file, whole, write_file
from vlm_plugin.gans.begin import Run
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.report.sheets import attention_sheet, loss_curves, sample_sheet
from vlm_plugin.training.run_folder import Log
from vlm_plugin.training.skipped import open_records


class Show:
    """The run's table and pictures, made from the test split at fixed noise by rank 0.

    Args:
        run: the run, as it stands before its next step.

    Attributes:
        records: the test pictures that they are made from.

    Raises:
        BadSampleError, OSError, ValueError: of what is wanted at the end, something is missing; the message names it.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.matcher, self.size = run, run.prepared.matcher, run.trainer.image_size
        config, truth = run.config, run.prepared.truth
        named = Named(Path(config.encoder).name, self.matcher)
        evaluator = choose_evaluator(None, truth, named)
        evaluator.vlm.to(self.matcher.device)
        # Now and not at the end: a missing file should not cost a whole run.
        test, count = self._open("test"), config.settings.evaluated
        # A run of an earlier release goes on with the first ones, with which it began.
        chosen = spread(test, count) if config.spread else test[:count]
        self.records = self._usable("test", chosen, self.matcher.vocabulary)
        count = len(self.records)
        others = self._usable("train", other_pictures(self._open("train"), count, truth), None)
        if distributed.rank() == 0:
            self.examination = Examination(
                Split(run.prepared.data, "test", self.records, others, truth),
                Scorers(evaluator, named, run.trained_with, choose_judge(truth, run.prepared.matcher.device)),
                self.size,
                count=count,
            )
        # What it drew before its first step is wanted at the end: a file that cannot be read is told of now.
        self._before()
        # The noise of one seed whatever the run's: runs of several seeds are compared at the same noise.
        self.painter = Painter(run.trainer.sample, self.matcher, run.trainer.noise_dim)

    def remember(self, name: str) -> None:
        """Keep the generator's present pictures, also across a kill."""
        if distributed.rank() == 0:
            drawn = torch.cat([to_bytes(batch) for batch in self._drawn()])
            shown = to_bytes(self.examination.draw_shown(self.painter))
            write_file({"pictures": drawn, "shown": shown}, self.run.folder / f"{name}.pt")

    def grid(self, name: str, path: Path) -> None:
        """A captioned grid of the present generator at the fixed noise."""
        self._sheet(path, {name: self.examination.draw_shown(self.painter)})

    def finish(self) -> None:
        """Print the table, and write it, the report and the pictures."""
        examination = self.examination
        before = self._before()
        examination.add_real()
        if before:
            examination.table.add("before", map(from_bytes, before["pictures"].split(examination.batch)))
        examination.table.add("after", self._drawn())
        print("\n" + examination.table.text_table() + "\n", flush=True)
        shown = {"before": from_bytes(before["shown"])} if before else {}
        shown["after"] = examination.draw_shown(self.painter)
        self._sheet(self.run.folder / "samples.png", shown)
        written = ["samples.png"]
        if rows := Log.read(self.run.folder / "log.jsonl"):
            loss_curves(self.run.folder / "curves.png", rows)
            written.append("curves.png")
        if hasattr(self.matcher.image_encoder, "grid"):
            self._attention(self.run.folder / "attention.png")
            written.append("attention.png")
        manifest = examination.manifest(self.run.trainer.average, truncation=None, ema=True)
        album = examination.album(self.painter, shown, "after")
        # A resumed run may hold those of an evaluation that took longer than this.
        keep_results(self.run.folder)
        written = [*examination.write(self.run.folder, manifest, album), *written]
        print(f"written to {self.run.folder}: {', '.join(written)}", flush=True)

    def _before(self) -> dict[str, Tensor]:
        """The bytes that `remember` kept so; empty where the file is gone, for the row is not worth the run."""
        file = self.run.folder / "before.pt"
        if not file.is_file():
            return {}
        content = read_file(file, "file of pictures, which may be deleted, and the row with it")
        with whole(file):
            return {name: content[name] for name in ("pictures", "shown")}

    def _open(self, split: str) -> Records:
        records, lost = open_records(self.run.prepared.data, split, self.run.config.skip_bad)
        self.run.left_out.add(lost)
        return records

    def _usable(self, split: str, records: Sequence[Record], vocabulary: Vocabulary | None) -> list[Record]:
        """The records with a readable picture and a caption that says something; others are an error, or skipped."""
        usable, skipped = usable_records(records, self.size, self.run.config.skip_bad, vocabulary)
        if skipped and distributed.rank() == 0:
            print(f"left out {len(skipped)} of {len(records)} pictures of the {split} split", flush=True)
        self.run.left_out.add(skipped)
        return usable

    def _drawn(self) -> Iterator[Tensor]:
        return self.painter.all(self.examination.captions, self.examination.batch)

    def _sheet(self, path: Path, generated: dict[str, Tensor]) -> None:
        examination = self.examination
        columns = {"real": examination.real(examination.shown)[:, None], **generated}
        sample_sheet(path, examination.shown_captions(), {name: list(c) for name, c in columns.items()})

    def _attention(self, path: Path) -> None:
        """Where the matcher looks, on the real and on the generated picture of the first captions."""
        numbers = self.examination.shown[:ATTENTION]
        captions = [self.examination.captions[number] for number in numbers]
        real, fake = self.examination.real(numbers), self.painter.some(captions, numbers)
        both = torch.stack([real, fake], dim=1).flatten(0, 1)
        rows = [caption for caption in captions for _ in range(2)]
        attention_sheet(path, self.matcher, both.to(self.matcher.device), rows)
