"""One training run of a baseline, from arguments to table and pictures: what AttnGAN's and DF-GAN's trainers share."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vlm_plugin import TERMS, VLM, DualVLMLoss, distributed
from vlm_plugin.augment import RandomView
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.files import tidy_end, write_json
from vlm_plugin.gans.begin import MakeLoss, Run, begin, beginning_of, lock, prepare, say
from vlm_plugin.gans.config import RunConfig, Settings, parser
from vlm_plugin.gans.configure import configure
from vlm_plugin.gans.find import baseline
from vlm_plugin.gans.loop import Loop, save_checkpoint
from vlm_plugin.gans.sampling import sample_with_arguments
from vlm_plugin.gans.show import Show
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.terminal import escape_unprintable
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.failures import one_cause
from vlm_plugin.training.ranks import join_ranks, leave_ranks
from vlm_plugin.training.run_folder import StopSignal


def run(
    name: str,
    folder: Path,
    build: type[Trainer],
    argv: Sequence[str] | None = None,
    loss: MakeLoss | None = None,
) -> Path:
    """Train, and end with a table and pictures; or draw captions, with `--sample`: what `main.py` does.

    What the user got wrong is one line on stderr and exit status 1, Ctrl-C one and 130.

    Args:
        name: the baseline's name.
        folder: the baseline's folder, with `cfg/` and `assets/`.
        build: the trainer, made from settings, matcher, device and precision.
        argv: arguments; the process's own when left out.
        loss: makes what `--vlm` adds, from matcher and settings: a module that is called as the dual loss is and has
            its two weights as attributes, which the run sets at every step. The dual loss when left out.

    Returns:
        The run's folder.
    """
    escape_unprintable()
    arguments = parser(name).parse_args(argv)
    try:
        return start(name, folder, build, arguments, loss)
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted{f'; {error}' if error.args else ''}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"{name}: {error}")


def start(
    name: str,
    folder: Path,
    build: type[Trainer],
    arguments: argparse.Namespace,
    loss: MakeLoss | None = None,
) -> Path:
    """What `run` does, with parsed arguments, for a caller that reports errors and Ctrl-C itself.

    Args:
        name, folder, build, loss: see `run`.
        arguments: of `parser(name)`.

    Returns:
        The run's folder.

    Raises:
        OSError, TypeError, ValueError: what the user got wrong, or too large a batch; the message says what to do.
        RankStoppedError: another process of this training failed first; the message says why.
        KeyboardInterrupt: interrupted; its argument, where it has one, says what is kept.
    """
    with one_cause():
        return _start(name, folder, build, arguments, loss)


def _start(name: str, folder: Path, build: type[Trainer], arguments: argparse.Namespace, loss: MakeLoss | None) -> Path:
    """`start` of one of the ranks."""
    try:
        trained = baseline(name)._replace(folder=folder)
        if arguments.sample is not None:
            return sample_with_arguments(trained, build, arguments)
        # Ranks wait for each other where Python hears no signal: the launcher's ends them at once.
        with tidy_end() if os.environ.get("WORLD_SIZE", "1") == "1" else contextlib.nullcontext():
            return _train(configure(trained, arguments), build, loss or dual_loss)
    except BadSampleError as error:
        raise ValueError(f"{error} (--skip-bad leaves out what cannot be used)") from None
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"{error} Try a smaller --batch (of a run that has begun: the same command with --generator RUN, its "
            "folder, and --batch N)"
        ) from error


def _train(config: RunConfig, build: type[Trainer], make_loss: MakeLoss) -> Path:
    """Begin or resume, take the steps, show what came of them."""
    device = choose_device(config.device)
    join_ranks(device)
    with contextlib.ExitStack() as locks:
        if config.resumed:
            lock(config.resumed.folder, locks)
        training = begin(config, prepare(config, device), build, make_loss, locks)
        show = _first_look(training)
        with StopSignal() as stop:
            Loop(training, show).train(stop)
        if distributed.rank() == 0:
            try:
                show.finish()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"trained; --resume {training.folder} makes table and pictures") from None
        training.left_out.report()
        leave_ranks()
    return training.folder


def _first_look(training: Run) -> Show:
    """Open what the table at the end needs, and write what the run began with: from here on it can be resumed."""
    resumed, folder = training.config.resumed, training.folder
    try:
        show = Show(training)
    except BaseException:
        if not resumed and distributed.rank() == 0:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
        raise
    beginning = beginning_of(training, show.records)
    if distributed.rank() == 0:
        write_json(training.config.options(beginning), folder / "options.json")
    if not resumed:
        show.remember("before")
        save_checkpoint(training.trainer, 0, folder, training.bad_steps)
    return show


def dual_loss(matcher: VLM, settings: Settings) -> DualVLMLoss:
    """The dual loss as a run's settings ask for it; its weights stand at 0 until the run sets them."""
    terms = settings.vlm.terms
    if terms is None:
        terms = [term for term in TERMS if matcher.scorer is not None or not term.endswith("_general")]
        if len(terms) < len(TERMS):
            say("this matcher has no scorer: the general terms are off (vlm-plugin pretrain --damsm trains one)")
    augment = RandomView() if settings.vlm.augment else None
    return DualVLMLoss(matcher, lambda_vvm=0.0, lambda_vlm=0.0, augment=augment, terms=terms)
