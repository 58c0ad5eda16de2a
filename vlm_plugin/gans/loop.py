"""The training loop: steps, log, checkpoints, and weights that ramp up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict

from vlm_plugin import VLM, DualVLMLoss, Features, distributed
from vlm_plugin.data import CaptionedImages, Record
from vlm_plugin.data.dataset import Batch, Collate
from vlm_plugin.files import not_finite, write_file
from vlm_plugin.gans.show import Show
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.training.ranks import from_all_ranks, leave_ranks, on_any_rank, progress
from vlm_plugin.training.run_folder import Log, StopSignal
from vlm_plugin.training.skipped import LeftOut
from vlm_plugin.training.stream import Stream, endless_batches, mix


def ramp(step: int, start: int, length: int) -> float:
    """0 up to step `start`, then a straight line to 1 over `length` steps."""
    if length <= 0:
        return float(step > start)
    return min(max((step - start) / length, 0.0), 1.0)


def weights_at(step: int, settings: EasyDict) -> tuple[float, float]:
    """(lambda_vvm, lambda_vlm) at a step: each half ramps up linearly from its own start. Source: ours."""
    return (
        settings.lambda_vvm * ramp(step + 1, settings.vvm_start, settings.vvm_warmup),
        settings.lambda_vlm * ramp(step + 1, settings.vlm_start, settings.vlm_warmup),
    )


def train_steps(
    trainer: Trainer,
    vlm_loss: DualVLMLoss | None,
    matcher: VLM,
    records: Sequence[Record],
    run_folder: Path,
    options: dict[str, Any],
    settings: EasyDict,
    span: tuple[int, int],
    device: torch.device,
    show: Show,
    stop: StopSignal,
    left_out: LeftOut,
) -> None:
    first, steps = span
    seed, rank = options["seed"], distributed.rank()
    skip_bad = options["skip_bad"]
    images = CaptionedImages(records, trainer.image_size, train=True, vocabulary=matcher.vocabulary)
    batches = endless_batches(
        Stream(images, seed, skip_bad), settings.batch, Collate(matcher.vocabulary, matcher.max_words),
        first_step=first, device=device, workers=settings.workers,
    )  # fmt: skip
    log = Log(run_folder / "log.jsonl", first)
    bar = progress(range(first, steps), initial=first, total=steps)
    kept = first
    for step in bar:
        batch = next(batches)
        if skip_bad:
            left_out.add(from_all_ranks(batch.skipped))
        batch = batch._replace(images=batch.images.to(device, memory_format=torch.channels_last, non_blocking=True))
        # Whatever draws from torch's global randomness from here on is the same in a resumed run.
        # (The last number sets it apart from the trainers' noise.)
        torch.manual_seed(mix(seed, step, rank, 3))
        with torch.no_grad():
            text = matcher.encode_tokens(batch.tokens, batch.lengths)
        if vlm_loss is not None:
            vlm_loss.lambda_vvm, vlm_loss.lambda_vlm = weights_at(step, settings.vlm)
        values = trainer.step(batch, text, step, vlm_loss)
        if step % settings.log_every == 0 or step == steps - 1:
            values = {k: float(v) for k, v in values.items()}
            if vlm_loss is not None:
                values |= floors_of(vlm_loss, batch, text)
                values |= {"lambda_vvm": vlm_loss.lambda_vvm, "lambda_vlm": vlm_loss.lambda_vlm}
            log.add(step=step, **values)
            check_finite(values, step, run_folder, kept)
            shown = {k: f"{values[k]:.2f}" for k in ("discriminator", "generator")}
            bar.set_postfix(shown | ({"left out": len(left_out.names)} if left_out.names else {}))
        done = step + 1
        stopping = on_any_rank(stop.asked, device)
        if done % settings.checkpoint_every == 0 or done == steps or stopping:
            check_finite(trainer.state(), step, run_folder, kept)
            save_checkpoint(trainer, done, run_folder)
            kept = done
        if done % settings.sample_every == 0 and done < steps and rank == 0:
            show.grid(f"step {done}", run_folder / f"samples-{done:06d}.png")
        if stopping:
            if rank == 0:
                print(f"\nstopped after step {done}; go on with --resume {run_folder}", flush=True)
            # A launcher ends the other processes when the first is gone: none goes before the checkpoint is written.
            leave_ranks()
            sys.exit(128 + signal.SIGTERM)


def save_checkpoint(trainer: Trainer, step: int, run_folder: Path) -> None:
    if distributed.rank() == 0:
        write_file({"step": step, "trainer": trainer.state()}, run_folder / "checkpoint.pt")


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
