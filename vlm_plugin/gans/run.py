"""One training run of a baseline, from arguments to table and pictures: what AttnGAN's and DF-GAN's trainers share."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from easydict import EasyDict

from vlm_plugin import TERMS, VLM, DualVLMLoss, distributed
from vlm_plugin.augment import RandomView
from vlm_plugin.data import find_truth, make_birds
from vlm_plugin.data.birds.make import BIRDS, BIRDS_FOLDER
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.files import read_file, whole, write_json
from vlm_plugin.gans.config import (
    RUNS,
    begun_with,
    check_begun,
    may_have_moved,
    moved_files,
    named_by_run,
    new_options,
    parser,
    run_length,
    saved_options,
)
from vlm_plugin.gans.loop import save_checkpoint, train_steps
from vlm_plugin.gans.sampling import sample_with_arguments
from vlm_plugin.gans.show import Show
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.matcher.choose import PACKAGED, TOLERATED_UNKNOWN, load_matcher, marks, unknown_words
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.terminal import check_outside, escape_unprintable
from vlm_plugin.training.device import choose_device, choose_precision
from vlm_plugin.training.ranks import barrier, join_ranks, leave_ranks
from vlm_plugin.training.run_folder import StopSignal, only_process, shared_run_folder, versions
from vlm_plugin.training.skipped import LeftOut, open_records

# Captions whose words are looked up when a run begins.
_LOOKED_AT = 1000


def run(
    name: str,
    folder: Path,
    build: type[Trainer],
    argv: Sequence[str] | None = None,
    loss: Callable[[VLM, EasyDict], DualVLMLoss] | None = None,
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
    loss: Callable[[VLM, EasyDict], DualVLMLoss] | None = None,
) -> Path:
    """What `run` does, with parsed arguments, for a caller that reports errors and Ctrl-C itself.

    Args:
        name, folder, build, loss: see `run`.
        arguments: of `parser(name)`.

    Returns:
        The run's folder.

    Raises:
        OSError, TypeError, ValueError: what the user got wrong, or too large a batch; the message says what to do.
        KeyboardInterrupt: interrupted; its argument, where it has one, says what is kept.
    """
    try:
        if arguments.sample is not None:
            return sample_with_arguments(folder, build, arguments)
        with contextlib.ExitStack() as only:
            return _run(name, folder, build, arguments, loss or dual_loss, only)
    except BadSampleError as error:
        raise ValueError(f"{error} (--skip-bad leaves out what cannot be used)") from None
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"{error} Try a smaller --batch (of a run that has begun: the same command with --generator RUN, its "
            "folder, and --batch N)"
        ) from error


def _run(
    name: str,
    folder: Path,
    build: type[Trainer],
    arguments: argparse.Namespace,
    loss: Callable[[VLM, EasyDict], DualVLMLoss],
    only: contextlib.ExitStack,
) -> Path:
    device = choose_device(arguments.device)
    join_ranks(device)
    if arguments.resume is not None and arguments.resume.is_dir() and distributed.rank() == 0:
        only.enter_context(only_process(arguments.resume))
    saved = saved_options(name, arguments)
    options = saved | moved_files(saved, arguments) if saved else new_options(name, arguments, folder)
    # A run that broke on its data may go on without what broke it.
    options["skip_bad"] = options.get("skip_bad", False) or arguments.skip_bad
    settings = EasyDict(options["settings"])
    # What `auto` meant when the run began: resumed on other hardware it stays the run that it was.
    dtype = choose_precision(device, options.get("precision") or settings.precision)
    options["precision"] = str(dtype).removeprefix("torch.")
    if distributed.rank() == 0 and options["data"] is None:
        make_birds(BIRDS_FOLDER, **BIRDS, progress=True)
    barrier()
    data = Path(options["data"] or BIRDS_FOLDER)
    if not saved:
        check_outside(arguments.out or RUNS, data)
    with may_have_moved(arguments.resume, named_by_run(options, arguments, "data")):
        (records, lost), truth = open_records(data, "train", options["skip_bad"]), find_truth(data)
    if not saved and truth is None and PACKAGED in (options["vlm"], options["text_encoder"]):
        raise ValueError(
            f"--data {data}: expected with it a matcher of its words (--vlm FILE, or --text-encoder FILE for a plain "
            "run; vlm-plugin pretrain makes one), got none, and the packaged one knows the synthetic birds' words alone"
        )
    encoder = options["vlm"] or options["text_encoder"]
    with may_have_moved(arguments.resume, named_by_run(options, arguments, "vlm", "text_encoder")):
        matcher = load_matcher(encoder, data, device).requires_grad_(False)
    matcher.max_words = options["max_words"] or matcher.max_words
    if saved and saved.get("matcher") not in (None, matcher.fingerprint):
        raise ValueError(
            f"--resume {arguments.resume}: started with the matcher {saved['matcher']}, but {encoder} is "
            f"{matcher.fingerprint} now"
        )
    if saved and saved.get("matcher_reads") not in (None, matcher.caption_fingerprint):
        raise ValueError(f"--resume {arguments.resume}: started with another vocabulary than {encoder} has now")
    looked_at = [record.captions[0] for record in records[:_LOOKED_AT]]
    if told := unknown_words(looked_at, matcher.vocabulary, encoder, TOLERATED_UNKNOWN):
        _say(told)
    if (world := distributed.world_size()) > 1:
        _say(f"{world} processes of {settings.batch} pictures each: {world * settings.batch} a step")
    vlm_loss = loss(matcher, settings) if options["vlm"] else None

    torch.manual_seed(options["seed"])
    trainer = build(settings, matcher, device, dtype)
    steps = run_length(arguments, options, len(records))
    first = 0
    if saved:
        run_folder = arguments.resume
        # Onto the CPU: Adam's step counters stay where they are loaded to, and on a GPU every look at one waits for it.
        checkpoint = read_file(run_folder / "checkpoint.pt", "checkpoint")
        with whole(run_folder / "checkpoint.pt"):
            trainer.load_state(checkpoint["trainer"])
            first = checkpoint["step"]
        if steps < first:
            raise ValueError(f"--resume {run_folder}: expected {first} steps or more, which it has done, got {steps}")
        _say(f"resuming {run_folder} at step {first} of {steps}")
    elif options["start"] is not None:
        taken = trainer.load_start(Path(options["start"]), matcher, discriminators=options["start_discriminators"])
        _say(f"beginning from {options['start']}: {', '.join(taken)}")
        if not trainer.start_is_checked:
            start = options["start"]
            _say(f"{start} does not say which text encoder it was trained with: it must have been that of {encoder}")
    if not saved:
        run_folder = shared_run_folder(arguments.out or RUNS, f"{name}{'-vlm' if vlm_loss else ''}")
        if distributed.rank() == 0:
            only.enter_context(only_process(run_folder))
    # By what trained the networks that it began from as well; an earlier release did not keep it.
    taught = trainer.trained_with | (marks(matcher) if vlm_loss or trainer.learns_from_matcher else frozenset())
    options["trained_with"] = options.get("trained_with") or sorted(taught)
    left_out = LeftOut(run_folder / "skipped.txt", keep=bool(saved))
    if saved:
        left_out.move(Path(saved["data"] or BIRDS_FOLDER), data)
    left_out.add(lost)
    try:
        show = Show(run_folder, data, truth, matcher, options, settings, trainer, left_out)
    except BaseException:
        if not saved and distributed.rank() == 0:
            with contextlib.suppress(OSError):  # there is something in it
                run_folder.rmdir()
        raise
    begun = begun_with(records, show)
    if saved:
        check_begun(saved, begun, f"--resume {run_folder}", data)
    if distributed.rank() == 0:
        facts = {
            "steps": steps, "epochs": None, "matcher": matcher.fingerprint, **begun,
            "matcher_reads": matcher.caption_fingerprint,
            "text_fingerprint": fingerprint(matcher.text_encoder), "versions": versions(),
        }  # fmt: skip
        write_json({**options, **facts}, run_folder / "options.json")
    if not saved:
        show.remember("before")
        save_checkpoint(trainer, 0, run_folder)
    with StopSignal() as stop:
        train_steps(
            trainer, vlm_loss, matcher, records, run_folder, options, settings, (first, steps), device, show, stop,
            left_out,
        )  # fmt: skip
    if distributed.rank() == 0:
        try:
            show.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"trained; --resume {run_folder} makes table and pictures") from None
    left_out.report()
    leave_ranks()
    return run_folder


def _say(text: str) -> None:
    if distributed.rank() == 0:
        print(text, flush=True)


def dual_loss(matcher: VLM, settings: EasyDict) -> DualVLMLoss:
    """The dual loss as a run's settings ask for it; its weights stand at 0 until the run sets them."""
    terms = settings.vlm.terms
    if terms is None:
        terms = [term for term in TERMS if matcher.scorer is not None or not term.endswith("_general")]
        if len(terms) < len(TERMS):
            _say("this matcher has no scorer: the general terms are off (vlm-plugin pretrain --damsm trains one)")
    augment = RandomView() if settings.vlm.augment else None
    return DualVLMLoss(matcher, lambda_vvm=0.0, lambda_vlm=0.0, augment=augment, terms=terms)
