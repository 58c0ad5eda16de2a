"""The training loop: steps, log, checkpoints, and weights that ramp up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_plugin import DualVLMLoss, Features, distributed
from vlm_plugin.data import CaptionedImages
from vlm_plugin.data.dataset import Batch, Collate
from vlm_plugin.files import not_finite, write_next
from vlm_plugin.gans.begin import Run
from vlm_plugin.gans.config import VLMSettings
from vlm_plugin.gans.show import Show
from vlm_plugin.gans.trainer import Trainer
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
        batches, device = self._batches(), self.run.prepared.device
        for step in self.bar:
            done = step + 1
            batch, text, values = self._step(step, next(batches))
            if step % self.settings.log_every == 0 or done == self.last:
                self._write_log(step, batch, text, values)
            stopping = on_any_rank(stop.asked, device)
            if done % self.settings.checkpoint_every == 0 or done == self.last or stopping:
                self._keep(done)
            if done % self.settings.sample_every == 0 and done < self.last and distributed.rank() == 0:
                self.show.grid(f"step {done}", self.run.folder / f"samples-{done:06d}.png")
            if stopping:
                self._leave(done, stop)

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

    def _step(self, step: int, batch: Batch) -> tuple[Batch, Features, dict[str, Tensor]]:
        """One update of every network: what it was made with, and its losses."""
        run = self.run
        # Whatever draws from torch's global randomness from here on is the same in a resumed run.
        # (The last number sets it apart from the trainers' noise.)
        torch.manual_seed(mix(run.config.seed, step, distributed.rank(), 3))
        with torch.no_grad():
            text = run.prepared.matcher.encode_tokens(batch.tokens, batch.lengths)
        if run.vlm_loss is not None:
            run.vlm_loss.lambda_vvm, run.vlm_loss.lambda_vlm = weights_at(step, self.settings.vlm)
        return batch, text, run.trainer.step(batch, text, step, run.vlm_loss)

    def _write_log(self, step: int, batch: Batch, text: Features, losses: Mapping[str, Tensor]) -> None:
        """A line of the log, and the progress bar; the end where a loss is no number."""
        vlm_loss, names = self.run.vlm_loss, self.run.left_out.names
        values = {name: float(value) for name, value in losses.items()}
        if vlm_loss is not None:
            values |= floors_of(vlm_loss, batch, text)
            values |= {"lambda_vvm": vlm_loss.lambda_vvm, "lambda_vlm": vlm_loss.lambda_vlm}
        self.log.add(step=step, **values)
        check_finite(values, step, self.run.folder, self.kept)
        shown = {name: f"{values[name]:.2f}" for name in ("discriminator", "generator")}
        self.bar.set_postfix(shown | ({"left out": len(names)} if names else {}))

    def _keep(self, done: int) -> None:
        """Overwrite the checkpoint, unless there is something in it that is no number."""
        check_finite(self.run.trainer.state(), done - 1, self.run.folder, self.kept)
        save_checkpoint(self.run.trainer, done, self.run.folder)
        self.kept = done

    def _leave(self, done: int, stop: StopSignal) -> None:
        if distributed.rank() == 0:
            print(f"\nstopped after step {done}; go on with --resume {self.run.folder}", flush=True)
        # A launcher ends the other processes when the first is gone: none goes before the checkpoint is written.
        leave_ranks()
        # A rank that no signal reached ends as the launcher's would.
        sys.exit(128 + (stop.number or signal.SIGTERM))


def save_checkpoint(trainer: Trainer, step: int, run_folder: Path) -> None:
    """What a resumed run goes on from, after so many steps; rank 0 writes it, and keeps the one before it."""
    if distributed.rank() == 0:
        write_next({"step": step, "trainer": trainer.state()}, run_folder / "checkpoint.pt")


def check_finite(content: Mapping[str, Any], step: int, run_folder: Path, kept: int) -> None:
    """End the run on every rank, before its checkpoint is overwritten, where one of them holds NaN or infinity."""
    name = not_finite(content)
    if names := from_all_ranks([] if name is None else [name]):
        raise ValueError(
            f"step {step}: expected finite numbers, got NaN or infinity in {names[0]}: the training has broken down. "
            f"{run_folder}/checkpoint.pt stays as it was after step {kept}; to go on from it with lower rates or "
            f"weights, begin a run with --generator {run_folder} and other settings (--cfg)"
        )


@torch.no_grad()
def floors_of(vlm_loss: DualVLMLoss, batch: Batch, text: Features) -> dict[str, float]:
    """Each term on real pairs: with the caption the real picture itself, with the real picture its mirror image.

    A generator whose term lies below its floor exploits the matcher.
    """
    real_pairs = vlm_loss(batch.images, text, batch.images.flip(3), class_ids=batch.class_ids)
    return {f"floor_{name}": float(value) for name, value in real_pairs.terms.items()}
