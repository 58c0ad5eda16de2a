"""The training loop: steps, good and bad, log, checkpoints, and weights that ramp up."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_plugin import DualVLMLoss, Features, distributed
from vlm_plugin.data import CaptionedImages
from vlm_plugin.data.dataset import Batch, Collate
from vlm_plugin.files import not_finite, write_next
from vlm_plugin.gans.begin import Run, say
from vlm_plugin.gans.config import VLMSettings
from vlm_plugin.gans.show import Show
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.training.bad_steps import (
    BAD_BATCH,
    BadSteps,
    NotFiniteError,
    Taken,
    in_words,
    save_batch,
    says_not_finite,
)
from vlm_plugin.training.ranks import from_all_ranks, leave_ranks, on_any_rank, progress
from vlm_plugin.training.run_folder import Log, StopSignal
from vlm_plugin.training.stream import Stream, endless_batches, mix


def ramp(step: int, start: int, length: int) -> float:
    """0 up to step `start`, then a straight line to 1 over `length` steps."""
    if length <= 0:
        return float(step > start)
    return min(max((step - start) / length, 0.0), 1.0)


def weights_at(step: int, settings: VLMSettings) -> tuple[float, float]:
    """(lambda_vvm, lambda_vlm) at a step: each half ramps up linearly from its own start. Source: ours."""
    return (
        settings.lambda_vvm * ramp(step + 1, settings.vvm_start, settings.vvm_warmup),
        settings.lambda_vlm * ramp(step + 1, settings.vlm_start, settings.vlm_warmup),
    )


class Content(NamedTuple):
    """What a step was made with, and what came of it."""

    batch: Batch
    text: Features
    losses: Mapping[str, Tensor]
    weights: dict[str, float]
    """Of the dual loss's halves; empty for a plain run."""


class Loop:
    """The steps of a run that are left, and what is written between them.

    Args:
        run: the run, as it stands before its next step.
        show: draws the sheets of samples.
    """

    def __init__(self, run: Run, show: Show) -> None:
        self.run, self.show, self.settings = run, show, run.config.settings
        self.first, self.last = run.first, run.config.steps
        self.kept = run.first  # steps that the checkpoint has done
        self.log = Log(run.folder / "log.jsonl", run.first)
        self.bad_steps = run.bad_steps
        self.bar = progress(range(self.first, self.last), initial=self.first, total=self.last)

    def train(self, stop: StopSignal) -> None:
        """Take the steps.

        Args:
            stop: asks for an end after the step that is being taken, with a checkpoint.

        Raises:
            SystemExit: `stop` asked.
            BadSampleError: a picture cannot be used, and the run leaves none out.
            ValueError: the training has broken down, or hardly any picture can be used.
        """
        batches = self._batches()
        for step in self.bar:
            done = step + 1
            taken = self._step(step, next(batches))
            # A step that is bad on one rank counts on all of them: they stop together.
            stopping, bad = on_any_rank(stop.asked, taken.report.bad)
            logging = step % self.settings.log_every == 0 or done == self.last
            keeping = done % self.settings.checkpoint_every == 0 or done == self.last or stopping
            self._count(taken, bad, now=logging or keeping)
            if logging and not self.bad_steps.in_a_row:
                self._write_log(taken)
            # Bad steps may come of the weights: what they began with stays until one was sound.
            if keeping and (not self.bad_steps.in_a_row or done == self.last or stopping):
                self._keep(taken, draws=done == self.last)
            sampling = done % self.settings.sample_every == 0 and done < self.last
            if sampling and not self.bad_steps.in_a_row and distributed.rank() == 0:
                self._draw(taken)
            if stopping:
                self._leave(done, stop)
        if self.bad_steps.total:
            say(f"passed over {self.bad_steps.total} bad steps: see {self.log.path}")

    def _batches(self) -> Iterator[Batch]:
        run, prepared = self.run, self.run.prepared
        matcher, device = prepared.matcher, prepared.device
        images = CaptionedImages(prepared.records, run.trainer.image_size, train=True, vocabulary=matcher.vocabulary)
        batches = endless_batches(
            Stream(images, run.config.seed, run.config.skip_bad), self.settings.batch,
            Collate(matcher.vocabulary, matcher.max_words),
            first_step=self.first, device=device, workers=self.settings.workers,
        )  # fmt: skip
        for batch in batches:
            if run.config.skip_bad:
                run.left_out.add(from_all_ranks(batch.skipped))
            images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
            yield batch._replace(images=images)

    def _step(self, step: int, batch: Batch) -> Taken:
        """One update of every network, or none."""
        run, weights = self.run, {}
        # Whatever draws from torch's global randomness from here on is the same in a resumed run.
        # (The last number sets it apart from the trainers' noise.)
        torch.manual_seed(mix(run.config.seed, step, distributed.rank(), 3))
        with torch.no_grad():
            text = run.prepared.matcher.encode_tokens(batch.tokens, batch.lengths)
        if run.vlm_loss is not None:
            run.vlm_loss.lambda_vvm, run.vlm_loss.lambda_vlm = weights_at(step, self.settings.vlm)
            weights = {"lambda_vvm": run.vlm_loss.lambda_vvm, "lambda_vlm": run.vlm_loss.lambda_vlm}
        try:
            losses = run.trainer.step(batch, text, step, run.vlm_loss)
        except NotFiniteError as error:
            self._save_batch(step, batch, [str(error)])
            raise ValueError(broken_down(step, [str(error)], run.folder, self.kept)) from None
        return Taken(step, run.trainer.guard.report(), Content(batch, text, losses, weights))

    def _count(self, taken: Taken, bad: Tensor, *, now: bool) -> None:
        """Count and log the bad ones of the steps so far; the end of the run where too many of them come in a row."""
        for seen in self.bad_steps.look(taken, bad, now=now):
            own = seen.report.names()
            names = from_all_ranks(own)
            finite = {name: number for name, number in numbers(seen.content.losses).items() if math.isfinite(number)}
            self.log.add(step=seen.step, **finite, bad_steps=self.bad_steps.total, not_finite=in_words(names))
            self._show({})
            if self.bad_steps.too_many:
                if where_first(bool(own)):
                    self._save_batch(seen.step, seen.content.batch, own)
                raise ValueError(broken_down(seen.step, names, self.run.folder, self.kept, self.bad_steps.words()))

    def _save_batch(self, step: int, batch: Batch, names: list[str]) -> None:
        trainer = self.run.trainer
        noise = {"seed": self.run.config.seed, "noise": trainer.noise(len(batch.captions), step).cpu()}
        save_batch(self.run.folder / BAD_BATCH, step, names, noise, batch=batch)

    def _write_log(self, taken: Taken) -> None:
        """A line of the log, and the progress bar, of a sound step."""
        batch, text, losses, weights = taken.content
        values = numbers(losses)
        if self.run.vlm_loss is not None:
            floors = floors_of(self.run.vlm_loss, batch, text)
            values |= {name: floor for name, floor in floors.items() if math.isfinite(floor)} | weights
        self.log.add(step=taken.step, **values)
        self._show({name: f"{values[name]:.2f}" for name in ("discriminator", "generator")})

    def _show(self, losses: Mapping[str, str]) -> None:
        """The progress bar."""
        counts = {"left out": len(self.run.left_out.names), "bad steps": self.bad_steps.total}
        self.bar.set_postfix({**losses, **{name: count for name, count in counts.items() if count}})

    def _draw(self, taken: Taken) -> None:
        """A sheet of samples."""
        done = taken.step + 1
        try:
            self.show.grid(f"step {done}", self.run.folder / f"samples-{done:06d}.png")
        except ValueError as error:
            if not says_not_finite(error):
                raise
            self._save_batch(taken.step, taken.content.batch, [str(error)])
            raise ValueError(broken_down(taken.step, ["pictures"], self.run.folder, self.kept)) from error

    def _keep(self, taken: Taken, *, draws: bool) -> None:
        """Overwrite the checkpoint, unless there is something in it that is no number.

        Args:
            taken: the last step.
            draws: see to it that the generator's pictures are finite, too.
        """
        trainer, done = self.run.trainer, taken.step + 1
        content = trainer.state()
        if draws:
            text = taken.content.text
            content["the generator's pictures"] = trainer.sample(trainer.noise(len(text.pooled), taken.step), text)
        name = not_finite(content)
        if names := from_all_ranks([] if name is None else [name]):
            if where_first(name is not None):
                self._save_batch(taken.step, taken.content.batch, names)
            # Where bad steps led here, what was wrong with the last one says more.
            names, times = from_all_ranks(taken.report.names()) or names, self.bad_steps.words()
            raise ValueError(broken_down(taken.step, names, self.run.folder, self.kept, times))
        save_checkpoint(trainer, done, self.run.folder, self.bad_steps)
        self.kept = done

    def _leave(self, done: int, stop: StopSignal) -> None:
        if distributed.rank() == 0:
            print(f"\nstopped after step {done}; go on with --resume {self.run.folder}", flush=True)
        # A launcher ends the other processes when the first is gone: none goes before the checkpoint is written.
        leave_ranks()
        # A rank that no signal reached ends as the launcher's would.
        sys.exit(128 + (stop.number or signal.SIGTERM))


def save_checkpoint(trainer: Trainer, step: int, run_folder: Path, bad_steps: BadSteps) -> None:
    """What a resumed run goes on from, after so many steps; rank 0 writes it, and keeps the one before it."""
    if distributed.rank() == 0:
        content = {"step": step, "trainer": trainer.state(), **bad_steps.counts()}
        write_next(content, run_folder / "checkpoint.pt")


def broken_down(step: int, names: list[str], run_folder: Path, kept: int, times: str = "") -> str:
    """What a run says that ends because of NaN or infinity, whatever noticed it.

    Args:
        step: the step.
        names: of what was NaN or infinite.
        run_folder: the run's folder, with a checkpoint and the bad batch.
        kept: steps that the checkpoint has done.
        times: how many such steps there were.
    """
    return (
        f"step {step}: expected finite numbers, got NaN or infinity in {in_words(names)}{times}: the training has "
        f"broken down. {run_folder}/checkpoint.pt stays as it was after step {kept}; to go on from it with lower rates "
        f"or weights, begin a run with --generator {run_folder} and other settings (--cfg). {run_folder}/{BAD_BATCH} "
        "has the step's pictures, captions and noise"
    )


def numbers(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Losses as plain numbers; a GPU is waited for."""
    return {name: float(value) for name, value in losses.items()}


def where_first(here: bool) -> bool:
    """Whether this rank is the first to say so, which all have to ask at the same time; rank 0 where none does."""
    ranks = from_all_ranks([str(distributed.rank())] if here else [])
    return str(distributed.rank()) == (ranks or ["0"])[0]


@torch.no_grad()
def floors_of(vlm_loss: DualVLMLoss, batch: Batch, text: Features) -> dict[str, float]:
    """Each term on real pairs: with the caption the real picture itself, with the real picture its mirror image.

    A generator whose term lies below its floor exploits the matcher.
    """
    real_pairs = vlm_loss(batch.images, text, batch.images.flip(3), class_ids=batch.class_ids)
    return {f"floor_{name}": float(value) for name, value in real_pairs.terms.items()}
