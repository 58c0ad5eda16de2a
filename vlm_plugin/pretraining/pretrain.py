"""Pretraining of the matcher: local, global and general level, with caption anchors and with image anchors.

Sources: the three scores are the paper's; the contrastive losses, the negatives, the positives of the image-image pairs
and the schedule are ours (docs/method.md).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_plugin.data import CaptionedImages
from vlm_plugin.data.dataset import Batch
from vlm_plugin.files import check_writable, not_finite, whole
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.pretraining.evaluator import Evaluator, scores_in_words
from vlm_plugin.pretraining.losses import step_losses
from vlm_plugin.pretraining.pairs import Pairs, collate_pairs, has_wrong_caption
from vlm_plugin.pretraining.resume import (
    check_same_run,
    forget_state,
    is_finished,
    read_state,
    record_of,
    state_file_of,
    write_state,
)
from vlm_plugin.pretraining.settings import PretrainSettings, filled_in
from vlm_plugin.pretraining.start import (
    Splits,
    check_learnable,
    first_matcher,
    no_wrong_caption,
    open_splits,
    train_mode,
)
from vlm_plugin.training.bad_steps import (
    BAD_BATCH,
    BadSteps,
    Guard,
    Taken,
    in_words,
    load_optimizer,
    optimizer_for,
    save_batch,
)
from vlm_plugin.training.device import choose_device, choose_precision
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import only_writer
from vlm_plugin.training.skipped import LeftOut
from vlm_plugin.training.stream import Stream, endless_batches, mix

STEPS_PER_LOOK = 10  # the losses are shown every so many steps


def pretrain(data: str | Path, out: str | Path, **options: object) -> VLM:
    """Train a matcher and write it to `out`; the same call again goes on after a kill, and leaves a finished one alone.

    A new matcher's vocabulary has the words of the train and of the held-out captions, as those of the published
    pipelines do. No picture trains the vectors of words of the latter alone. A picture's captions without any
    known word are passed over.

    Args:
        data: folder of captioned pictures with a train split, and a validation (else test) split to choose the epoch.
        out: the matcher's file; one that another call made is refused. `out` + ".state" beside it holds what a resumed
            run needs, until the run is done.
        **options: whatever else there is to choose, each by its name in `PretrainSettings`.

    Returns:
        The matcher of the best epoch on the held-out split: by the mean of local and global R@1 or, as frozen encoders
        do not change these, by `general_hard` (see `Evaluator`). Of equal ones it is the last.

    Raises:
        BadSampleError: a picture cannot be used, and `skip_bad` is off. The message names it.
        OSError, ValueError: the message names the argument or file, which may be one that another process trains at
            this moment; or, with the first name that holds NaN or infinity, a training that broke down; or no picture
            has a wrong caption to learn from.
    """
    settings = filled_in(PretrainSettings(**options))
    data, out = Path(data), Path(out)
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    with contextlib.suppress(OSError):  # `check_writable` says why
        out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(out, "training this matcher"):
        return _pretrain(data, out, settings)


def _pretrain(data: Path, out: Path, settings: PretrainSettings) -> VLM:
    """`pretrain`, where no other process does the same."""
    device = choose_device(settings.device)
    dtype = choose_precision(device, settings.precision)
    state = read_state(out)
    if state is not None and state.get("skip_bad", False):
        settings = dataclasses.replace(settings, skip_bad=True)
    splits = open_splits(data, settings.skip_bad)
    vlm = first_matcher(settings, data, splits)
    check_learnable(splits, vlm.vocabulary, data)
    record = record_of(settings, data, vlm)
    if state is None and out.exists() and is_finished(out, record, splits.digest):
        print(f"{out}: finished already", flush=True)
        return VLM.load(out)
    check_writable(out)
    if state is not None:
        check_same_run(state, record, splits.digest, out)
    vlm.notes["pretraining"] = {**record, "pictures": splits.digest}
    return Pretraining(vlm.to(device), splits, settings, dtype, out, record, state).train()


class Pretraining:
    """A matcher in training, with what its next epoch depends on.

    Args:
        vlm: the matcher of `first_matcher`, on the device of the training.
        splits: of `open_splits`.
        settings: of `filled_in`.
        dtype: what to compute in.
        out: the matcher's file.
        record: of `record_of`, for the state file.
        state: of `read_state`, to go on from it; None for a new run.

    Attributes:
        epochs_done: how many passes over the train split lie behind.
        best: score, weights and results of the best epoch so far.
        learned: a batch had a picture with a wrong caption. Until then no matcher is written.
    """

    def __init__(
        self,
        vlm: VLM,
        splits: Splits,
        settings: PretrainSettings,
        dtype: torch.dtype,
        out: Path,
        record: dict[str, Any],
        state: dict[str, Any] | None = None,
    ) -> None:
        self.vlm, self.splits, self.settings, self.dtype = vlm, splits, settings, dtype
        self.out, self.record = out, record
        self.steps = max(len(splits.train) // settings.batch, 1)  # of an epoch
        self.trained = [parameter for parameter in vlm.parameters() if parameter.requires_grad]
        rate, total = settings.learning_rate, settings.epochs * self.steps + 1
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=rate, weight_decay=1e-4, betas=(0.9, 0.98), **optimizer_for(vlm.device)
        )
        self.guard = Guard(vlm.device, {"matcher": vlm})
        self.bad_steps = BadSteps(settings.max_bad_steps, None if state is None else state.get("bad_steps"))
        # A tenth of warm-up, and one step at least (with none OneCycleLR divides by zero).
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rate, total_steps=total, pct_start=max(0.1, 2 / total)
        )
        self.best: dict[str, Any] = {"score": -1.0, "weights": None, "results": {}}
        self.epochs_done, self.learned = 0, False
        self.left_out = LeftOut(out.with_name(out.name + ".skipped.txt"), keep=state is not None)
        self.left_out.add(splits.lost)
        if state is not None:
            self._go_on(state)

    def train(self) -> VLM:
        """Train the epochs that are left; a look at the held-out split and the files follow on each.

        Returns:
            The matcher of the best epoch, as its file holds it.
        """
        evaluate = self._evaluator()
        ceiling = evaluate.ceiling()
        batches = self._batches()
        for epoch in range(self.epochs_done, self.settings.epochs):
            self._train_epoch(epoch, batches)
            self._judge_epoch(epoch, evaluate, ceiling)
            self.epochs_done = epoch + 1
            # The matcher before the state: a kill between the two repeats the epoch and loses nothing.
            if self.learned:
                self._save_best(ceiling)
            write_state(self._state(), self.out)
        self._check_learned()
        # Read before the state goes: what cannot be read would have to be trained anew.
        finished = VLM.load(self.out)
        forget_state(self.out)
        self.left_out.report()
        if self.bad_steps.total:
            print(f"passed over {self.bad_steps.total} steps with NaN or infinity", flush=True)
        print(f"wrote {self.out}", flush=True)
        return finished

    def _evaluator(self) -> Evaluator:
        """What judges an epoch; it says which part of the held-out split it does not look at."""
        splits, skip_bad = self.splits, self.settings.skip_bad
        evaluate = Evaluator(
            splits.held_out, self.settings.image_size, splits.truth, self.vlm.device,
            vocabulary=self.vlm.vocabulary, skip_bad=skip_bad,
        )  # fmt: skip
        total, skipped = len(splits.held_out), len(evaluate.skipped)
        if skipped:
            self.left_out.add(evaluate.skipped)
            print(f"left out {skipped} of {total} pictures of the {splits.held_out_name} split", flush=True)
        judged, usable = sum(map(len, evaluate.pools)), total - skipped
        if judged < usable:
            split = f"the {splits.held_out_name} split"
            print(f"each epoch is judged by {judged} of {usable} pictures of {split}", flush=True)
        self._tell_what_is_not_judged(evaluate)
        return evaluate

    def _tell_what_is_not_judged(self, evaluate: Evaluator) -> None:
        """Say what the held-out pictures do not tell, where none of them has a wrong caption."""
        splits, vocabulary = self.splits, self.vlm.vocabulary
        records = [splits.held_out[index] for pool in evaluate.pools for index in pool]
        without = "epochs cannot be told apart, so the last is kept"
        reason = no_wrong_caption(records, splits.truth, vocabulary, classes=False)
        if reason is None:
            reason = no_wrong_caption(records, splits.truth, vocabulary)
            without = without if self.settings.freeze_encoders else "the scorer is not judged"
        if reason is not None:
            print(f"{splits.held_out_name} split: {reason}: no wrong caption, {without}", flush=True)

    def _check_learned(self) -> None:
        """End a run whose losses could not teach anything, before its file is taken for a matcher."""
        if not self.learned:
            forget_state(self.out)
            raise ValueError(
                f"data: expected batches with a wrong caption for a picture, got none in {self.epochs_done} epochs: "
                f"the local and global losses were 0 throughout, so {self.out} is not written; try a larger --batch"
            )

    def _batches(self) -> Iterator[tuple[Batch, Batch]]:
        """The pairs of the steps that are left."""
        splits, settings = self.splits, self.settings
        images = CaptionedImages(splits.train, settings.image_size, train=True, vocabulary=self.vlm.vocabulary)
        pairs = Pairs(images, splits.train, splits.truth, settings.skip_bad)
        return endless_batches(
            Stream(pairs, settings.seed, settings.skip_bad), settings.batch, collate_pairs,
            first_step=self.epochs_done * self.steps, device=self.vlm.device,
        )  # fmt: skip

    def _train_epoch(self, epoch: int, batches: Iterator[tuple[Batch, Batch]]) -> None:
        train_mode(self.vlm)
        bar = progress(itertools.islice(batches, self.steps), total=self.steps, leave=False)
        bar.set_description(f"epoch {epoch + 1}/{self.settings.epochs}")
        for number, (first, second) in enumerate(bar):
            self.left_out.add([*first.skipped, *second.skipped])
            self.learned = self.learned or has_wrong_caption(self.splits.truth, first)
            step, shown = epoch * self.steps + number, {}
            terms = self._step(step, first, second)
            looking, last = number % STEPS_PER_LOOK == 0, number == self.steps - 1
            taken = Taken(step, self.guard.report(), (first, second))
            for seen in self.bad_steps.look(taken, taken.report.bad, now=looking or last):
                if self.bad_steps.too_many:
                    raise self._broken_down(seen)
            # An epoch without a sound step has trained nothing.
            if last and self.bad_steps.in_a_row >= self.steps:
                raise self._broken_down(taken)
            if looking:
                shown = {name: f"{float(value):.2f}" for name, value in terms.items()}
                counts = {"left out": len(self.left_out.names), "bad steps": self.bad_steps.total}
                bar.set_postfix({**shown, **{name: count for name, count in counts.items() if count}})
        if name := not_finite(self.vlm.state_dict()):
            raise self._broken_down(taken, name)

    def _step(self, step: int, first: Batch, second: Batch) -> dict[str, Tensor]:
        """One step of the optimizer, or none; returns the terms of the loss."""
        seed = mix(self.settings.seed, step, 2)
        # Dropout draws from the global randomness: it too must not know whether the run was interrupted.
        torch.manual_seed(seed)
        images, others = self.guard.begin(first.images, second.images)
        first, second = first._replace(images=images), second._replace(images=others)
        terms: dict[str, Tensor] = {}
        try:
            losses = step_losses(self.vlm, first, second, self.splits.truth, self.vlm.device, self.dtype, seed)
            terms = losses.terms
            self.guard.note(terms)
            self.guard.update(self.optimizer, losses.total, {"matcher": self.vlm}, clip=1.0)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            self.guard.abandon(error)
            self.optimizer.zero_grad(set_to_none=True)
            self.optimizer.step()
        # The rates are those of the step's number, whatever became of it.
        self.schedule.step()
        return terms

    def _broken_down(self, taken: Taken, name: str | None = None) -> ValueError:
        """What ends the run before its files are overwritten; the step's batch is written.

        Args:
            taken: the step.
            name: of what is NaN or infinite; what the guard found in the step when left out.
        """
        names = taken.report.names() if name is None else [name]
        first, second = taken.content
        path, done = self.out.with_name(f"{self.out.name}.{BAD_BATCH}"), self.epochs_done
        seed = {"seed": mix(self.settings.seed, taken.step, 2)}
        save_batch(path, taken.step, names, seed, batch=first, positives=second)
        return ValueError(
            f"epoch {done + 1}: expected finite numbers, got NaN or infinity in {in_words(names)} at step {taken.step}"
            f"{self.bad_steps.words()}: the training has broken down. "
            f"{f'{state_file_of(self.out)} stays as it was after epoch {done}; ' if done else ''}"
            f"begin a run with a lower --learning-rate and another --out. {path} has the step's pictures and captions"
        )

    def _judge_epoch(self, epoch: int, evaluate: Evaluator, ceiling: float) -> None:
        """Look at the held-out split, say what was found, and keep the weights unless there were better ones before."""
        results = evaluate(self.vlm)
        if self.settings.freeze_encoders:
            # The last epoch where no caption of the split is wrong, as in a split of one class.
            score = results.get("general_hard", epoch)
        else:
            score = (results["local_r1"] + results["global_r1"]) / 2
        words = scores_in_words(results, ceiling, len(evaluate.pools[0]))
        print(f"epoch {epoch + 1}/{self.settings.epochs}  {self.splits.held_out_name}: {words}", flush=True)
        # The last of equal ones: it has learned longer.
        if score >= self.best["score"]:
            self.best = {"score": score, "weights": copy.deepcopy(self.vlm.state_dict()), "results": results}

    def _save_best(self, ceiling: float) -> None:
        """Write the matcher of the best epoch."""
        self.vlm.notes["pretraining"]["epochs_done"] = self.epochs_done
        best = copy.deepcopy(self.vlm)
        best.load_state_dict(self.best["weights"])
        best.eval()
        best.notes["held_out"] = {
            "split": self.splits.held_out_name, "ceiling_r1": ceiling, **self.best["results"]
        }  # fmt: skip
        best.stamp()
        best.save(self.out, half=self.settings.half)

    def _state(self) -> dict[str, Any]:
        """What `write_state` writes and `_go_on` reads."""
        return {
            "settings": self.record, "pictures": self.splits.digest, "vlm": self.vlm.state_dict(),
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "best": self.best, "epoch": self.epochs_done, "skip_bad": self.settings.skip_bad, "learned": self.learned,
            **self.bad_steps.counts(),
        }  # fmt: skip

    def _go_on(self, state: dict[str, Any]) -> None:
        with whole(state_file_of(self.out)):
            self.vlm.load_state_dict(state["vlm"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.best, self.epochs_done = state["best"], state["epoch"]
        self.learned = state.get("learned", True)  # an earlier release wrote the matcher at once
        print(f"resuming after epoch {self.epochs_done} of {self.settings.epochs}", flush=True)
