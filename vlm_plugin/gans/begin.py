"""How a run begins, or goes on: its data and its matcher, its networks, its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from vlm_plugin import VLM, DualVLMLoss, distributed
from vlm_plugin.data import BirdTruth, Record, Records, find_truth, make_birds
from vlm_plugin.data.birds.make import BIRDS, BIRDS_FOLDER
from vlm_plugin.data.records import digest_records
from vlm_plugin.files import previous, read_file, set_aside, whole
from vlm_plugin.gans.config import Beginning, Resumed, RunConfig, Settings, may_have_moved
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.matcher.choose import PACKAGED, TOLERATED_UNKNOWN, load_matcher, marks, unknown_words
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.terminal import check_outside
from vlm_plugin.training.bad_steps import BadSteps
from vlm_plugin.training.device import choose_precision
from vlm_plugin.training.ranks import barrier
from vlm_plugin.training.run_folder import only_process, shared_run_folder, versions
from vlm_plugin.training.skipped import LeftOut, open_records

# Captions whose words are looked up when a run begins.
_LOOKED_AT = 1000

MakeLoss = Callable[[VLM, Settings], DualVLMLoss]


class Prepared(NamedTuple):
    """What a run works with, whatever its networks."""

    device: torch.device
    """Where to train."""
    dtype: torch.dtype
    """Autocast type."""
    data: Path
    """Folder of captioned pictures."""
    records: Records
    """Its train split."""
    lost: list[str]
    """Files of that split of which nothing can be read."""
    truth: BirdTruth | None
    """The attributes of synthetic birds; None for other data."""
    matcher: VLM
    """Conditions the generator, and gives the dual loss; frozen."""


class Run(NamedTuple):
    """A run whose networks stand as they do before its next step."""

    config: RunConfig
    """What it does, with the length in steps and the precision that it turned out to have."""
    prepared: Prepared
    """What it works with."""
    trainer: Trainer
    """The networks."""
    vlm_loss: DualVLMLoss | None
    """What `--vlm` adds."""
    first: int
    """Number of its next step; 0 for a new run."""
    folder: Path
    """The run's folder."""
    trained_with: list[str]
    """`marks` of every matcher whose loss trained the generator, also before this run."""
    left_out: LeftOut
    """Pictures that could not be used."""
    bad_steps: BadSteps
    """Steps that were passed over."""


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if distributed.rank() == 0:
        print(text, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# What it works with
# ---------------------------------------------------------------------------------------------------------------------


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Open the data and load the matcher, both the same as ever where the run is gone on with.

    Raises:
        BadSampleError, OSError, ValueError: the message names the argument or the file.
    """
    dtype = choose_precision(device, config.precision)
    data = _data_folder(config)
    with may_have_moved(*config.named_by_run("data")):
        (records, lost), truth = open_records(data, "train", config.skip_bad), find_truth(data)
    if config.resumed is None and truth is None and config.encoder == PACKAGED:
        raise ValueError(
            f"--data {data}: expected with it a matcher of its words (--vlm FILE, or --text-encoder FILE for a plain "
            "run; vlm-plugin pretrain makes one), got none, and the packaged one knows the synthetic birds' words alone"
        )
    matcher = _load_matcher(config, data, device)
    looked_at = [record.captions[0] for record in records[:_LOOKED_AT]]
    if told := unknown_words(looked_at, matcher.vocabulary, config.encoder, TOLERATED_UNKNOWN):
        say(told)
    batch, processes = config.settings.batch, distributed.world_size()
    if processes > 1:
        say(f"{processes} processes of {batch} pictures each: {processes * batch} a step")
    return Prepared(device, dtype, data, records, lost, truth, matcher)


def _data_folder(config: RunConfig) -> Path:
    """Where the pictures lie; the synthetic birds are drawn first."""
    if config.data is None and distributed.rank() == 0:
        make_birds(BIRDS_FOLDER, **BIRDS, progress=True)
    barrier()
    data = Path(config.data or BIRDS_FOLDER)
    if config.resumed is None:
        check_outside(config.out, data)
    return data


def _load_matcher(config: RunConfig, data: Path, device: torch.device) -> VLM:
    """The matcher, frozen: for a resumed run the very one that it began with."""
    with may_have_moved(*config.named_by_run("vlm", "text_encoder")):
        matcher = load_matcher(config.encoder, data, device).requires_grad_(False)
    matcher.max_words = config.max_words or matcher.max_words
    if config.resumed:
        folder, then = config.resumed.folder, config.resumed.beginning
        if then.matcher not in (None, matcher.fingerprint):
            raise ValueError(
                f"--resume {folder}: started with the matcher {then.matcher}, but {config.encoder} is "
                f"{matcher.fingerprint} now"
            )
        if then.matcher_reads not in (None, matcher.caption_fingerprint):
            raise ValueError(f"--resume {folder}: started with another vocabulary than {config.encoder} has now")
    return matcher


# ---------------------------------------------------------------------------------------------------------------------
# Its networks and its folder
# ---------------------------------------------------------------------------------------------------------------------


def begin(
    config: RunConfig, prepared: Prepared, build: type[Trainer], make_loss: MakeLoss, locks: contextlib.ExitStack
) -> Run:
    """Make the networks, put them where the run begins or goes on, and make a new run's folder.

    Args:
        config: what the run does.
        prepared: what it works with.
        build: the trainer, made from settings, matcher, device and precision.
        make_loss: makes what `--vlm` adds, from matcher and settings.
        locks: keeps a new run's folder from other processes, until it ends.

    Raises:
        OSError, ValueError: the message names the argument, the setting or the file.
    """
    settings, matcher = config.settings, prepared.matcher
    vlm_loss = make_loss(matcher, settings) if config.vlm else None
    torch.manual_seed(config.seed)
    trainer = build(settings, matcher, prepared.device, prepared.dtype)
    steps = config.length(len(prepared.records), distributed.world_size())
    precision = str(prepared.dtype).removeprefix("torch.")
    config = dataclasses.replace(config, steps=steps, epochs=None, precision=precision)
    if config.resumed:
        folder = config.resumed.folder
        first, bad_steps = _go_on(trainer, folder, steps, config.max_bad_steps)
    else:
        _load_start(trainer, config, matcher)
        first, folder = 0, shared_run_folder(config.out, config.name)
        bad_steps = BadSteps(config.max_bad_steps)
        lock(folder, locks)
    return Run(
        config, prepared, trainer, vlm_loss, first, folder,
        _trained_with(config, trainer, matcher), _left_out(config.resumed, folder, prepared), bad_steps,
    )  # fmt: skip


def lock(folder: Path, locks: contextlib.ExitStack) -> None:
    """Keep other processes than those of this run from training in its folder.

    Raises:
        ValueError: one does already.
    """
    if distributed.rank() == 0:
        locks.enter_context(only_process(folder))


def _go_on(trainer: Trainer, folder: Path, steps: int, max_bad_steps: int) -> tuple[int, BadSteps]:
    """Take the checkpoint's networks; how many steps they have done, and which of them were passed over."""
    file = folder / "checkpoint.pt"
    try:
        done, counts = _take(trainer, file)
    except (OSError, ValueError) as error:
        older = previous(file)
        if not older.is_file():
            raise
        done, counts = _take(trainer, older)
        if distributed.rank() == 0:
            set_aside(file)
        say(f"{error}: going on from the one before, {older}, after step {done}")
    bad_steps = BadSteps(max_bad_steps, counts)
    if steps < done:
        raise ValueError(f"--resume {folder}: expected {done} steps or more, which it has done, got {steps}")
    say(f"resuming {folder} at step {done} of {steps}")
    return done, bad_steps


def _take(trainer: Trainer, file: Path) -> tuple[int, Mapping[str, int] | None]:
    # Onto the CPU: Adam's step counters stay where they are loaded to, and on a GPU every look at one waits for it.
    checkpoint = read_file(file, "checkpoint")
    with whole(file):
        trainer.load_state(checkpoint["trainer"])
        return operator.index(checkpoint["step"]), checkpoint.get("bad_steps")


def _load_start(trainer: Trainer, config: RunConfig, matcher: VLM) -> None:
    """Take the networks that a new run begins from, if any."""
    start = config.start
    if start is None:
        return
    taken = trainer.load_start(Path(start), matcher, discriminators=config.start_discriminators)
    say(f"beginning from {start}: {', '.join(taken)}")
    if not trainer.start_is_checked:
        say(f"{start} does not say which text encoder it was trained with: it must have been that of {config.encoder}")


def _trained_with(config: RunConfig, trainer: Trainer, matcher: VLM) -> list[str]:
    """`marks` of what trained the networks, by what trained those that it began from as well."""
    if config.resumed and config.resumed.beginning.trained_with:
        return config.resumed.beginning.trained_with
    own = marks(matcher) if config.vlm or trainer.learns_from_matcher else frozenset()
    return sorted(trainer.trained_with | own)


def _left_out(resumed: Resumed | None, folder: Path, prepared: Prepared) -> LeftOut:
    left_out = LeftOut(folder / "skipped.txt", keep=resumed is not None)
    if resumed:
        left_out.move(Path(resumed.data or BIRDS_FOLDER), prepared.data)
    left_out.add(prepared.lost)
    return left_out


# ---------------------------------------------------------------------------------------------------------------------
# What it has to find again
# ---------------------------------------------------------------------------------------------------------------------


def beginning_of(run: Run, evaluated: list[Record]) -> Beginning:
    """What a run begins with, and a resumed one goes on with.

    Args:
        run: the run.
        evaluated: the pictures that its table is of.

    Raises:
        ValueError: the resumed run began with other pictures, or with another number of processes.
    """
    matcher, used = run.prepared.matcher, {"train": run.prepared.records, "evaluated": evaluated}
    now = Beginning(
        trained_with=run.trained_with,
        matcher=matcher.fingerprint,
        processes=distributed.world_size(),
        pictures={use: f"{len(records)} (digest {digest_records(records)})" for use, records in used.items()},
        matcher_reads=matcher.caption_fingerprint,
        text_fingerprint=fingerprint(matcher.text_encoder),
        versions=versions(),
    )
    if run.config.resumed:
        _check_same(run.config.resumed.beginning, now, f"--resume {run.folder}", run.prepared.data)
    return now


def _check_same(then: Beginning, now: Beginning, where: str, data: Path) -> None:
    # What runs of an earlier release do not say stays unchecked.
    if then.processes not in (None, now.processes):
        raise ValueError(f"{where}: begun with {_processes(then)}, got {_processes(now)}")
    for use, pictures in now.pictures.items():
        if then.pictures is not None and then.pictures[use] != pictures:
            raise ValueError(
                f"{where}: expected the pictures and captions that {data} had when the run began, got others: "
                f"{use}: {then.pictures[use]} then, {pictures} now"
            )


def _processes(beginning: Beginning) -> str:
    return f"{beginning.processes} process{'' if beginning.processes == 1 else 'es'}"
