"""One training run of a baseline, from arguments to table and pictures: what AttnGAN's and DF-GAN's trainers share."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict

from vlm_plugin import TERMS, VLM, DualVLMLoss, Features, distributed
from vlm_plugin.augment import RandomView
from vlm_plugin.data import CaptionedImages, Record, find_truth, make_birds
from vlm_plugin.data.dataset import Batch, Collate
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.finite import not_finite
from vlm_plugin.model import fingerprint, read_file, write_file
from vlm_plugin.tools import training
from vlm_plugin.tools.command_line import check_outside, escape_unprintable, name_or_path, user_path
from vlm_plugin.tools.matchers import FEW, PACKAGED, is_packaged, load_matcher, marks, unknown_words
from vlm_plugin.tools.sampling import read_captions, sample
from vlm_plugin.tools.settings import origin_of_run, read_config, settings_of_run
from vlm_plugin.tools.show import Show
from vlm_plugin.tools.trainer import Trainer, may_have_moved, whole

# What the main job draws when no data is given; the packaged files were made from more birds of the same kind.
BIRDS = {"train": 2000, "validation": 200, "test": 1000, "size": 64, "seed": 0}
# Not data/birds, where the originals have CUB.
BIRDS_FOLDER = Path("data/synthetic-birds")
RUNS = Path("runs")
# Captions whose words are looked up when a run begins.
_LOOKED_AT = 1000
# What beside --resume says where a run's files lie now.
_MOVABLE = {"data": "--data DIR", "vlm": "--vlm FILE", "text_encoder": "--text-encoder FILE"}
# A mismatched pair needs a second caption, a distance a second picture.
_LEAST = {"steps": 0, "batch": 2, "evaluated": 2, "log_every": 1, "sample_every": 1, "checkpoint_every": 1}


def parser(name: str) -> argparse.ArgumentParser:
    """Arguments of a baseline's main.py."""
    result = argparse.ArgumentParser(
        prog=f"baselines/{name}/main.py",
        description=f"Train {name}; with --vlm, the same with the dual vision-language matching loss. "
        "Without --data: synthetic birds, from the packaged start.",
    )
    add = result.add_argument
    add(
        "--vlm", type=name_or_path, nargs="?", const=PACKAGED, metavar="CHECKPOINT",
        help="add the dual loss of this matcher",
    )  # fmt: skip
    cfg_help = (
        "YAML settings, ours or the original's (default: cfg/synthetic.yml, from random weights cfg/scratch.yml, from "
        "a run's folder that run's own)"
    )
    add("--cfg", type=user_path, help=cfg_help)
    add(
        "--data",
        type=user_path,
        help=f"folder of captioned pictures (default: synthetic birds, drawn into {BIRDS_FOLDER})",
    )
    # No default here: --resume refuses one that is given.
    add("--out", type=user_path, help=f"where run folders are made (default: {RUNS})")
    add("--resume", type=user_path, metavar="RUN", help="go on with an interrupted run, from its folder")
    generator_help = "begin from, or draw with, a run's folder, a packaged start or a published checkpoint"
    add("--generator", type=user_path, metavar="RUN_OR_FILE", help=generator_help)
    sample_help = "draw these captions (a file: one a line, or a table as vlm-plugin score reads it); no training"
    add("--sample", type=name_or_path, nargs="+", metavar="CAPTION_OR_FILE", help=sample_help)
    length = result.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_count, help="generator updates")
    length.add_argument("--epochs", type=_count, help="passes over the train split")
    add("--batch", type=_count, help="pictures in a batch of each process")
    add("--seed", type=_count, help="decides initial weights, order and noise (default: 0)")
    add("--device", help="cuda, cuda:1, cpu (default: the GPU where there is one)")
    encoder_help = "plain runs and --sample: the matcher or DAMSM text encoder that conditions the generator"
    add("--text-encoder", type=name_or_path, metavar="FILE", help=encoder_help)
    add("--from-scratch", action="store_true", help="do not start from the packaged generator")
    add("--skip-bad", action="store_true", help="leave out pictures that cannot be used, and list them in skipped.txt")
    return result


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return int(text)


def _check_settings(settings: EasyDict) -> None:
    for name, least in _LEAST.items():
        if settings[name] < least:
            raise ValueError(f"{name}: expected at least {least}, got {settings[name]}")
    for name in ("lambda_vvm", "lambda_vlm", "vvm_start", "vvm_warmup", "vlm_start", "vlm_warmup"):
        if settings.vlm[name] < 0:
            raise ValueError(f"vlm.{name}: expected a number from 0 up, got {settings.vlm[name]}")
    # An average that weighs what is new negatively grows without bound.
    if not 0 <= settings.ema <= 1:
        raise ValueError(f"ema: expected a number from 0 to 1, got {settings.ema}")
    for name in ("generator_lr", "discriminator_lr"):
        if settings[name] < 0:
            raise ValueError(f"{name}: expected a number from 0 up, got {settings[name]}")
    if not all(0 <= beta < 1 for beta in settings.adam_betas):
        raise ValueError(f"adam_betas: expected two numbers from 0 to below 1, got {list(settings.adam_betas)}")
    workers = settings.workers
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ValueError(f"workers: expected null, or a whole number from 0 up, got {workers!r}")


def weights_at(step: int, settings: EasyDict) -> tuple[float, float]:
    """(lambda_vvm, lambda_vlm) at a step: each half ramps up linearly from its own start. Source: ours."""
    return (
        settings.lambda_vvm * training.ramp(step + 1, settings.vvm_start, settings.vvm_warmup),
        settings.lambda_vlm * training.ramp(step + 1, settings.vlm_start, settings.vlm_warmup),
    )


def run(
    name: str,
    folder: Path,
    build: type[Trainer],
    argv: Sequence[str] | None = None,
    loss: Callable[[VLM, EasyDict], DualVLMLoss] | None = None,
) -> Path:
    """Train, and end with a table and pictures; or draw captions, with `--sample`.

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
        if arguments.sample is not None:
            return _sample(folder, build, arguments)
        with contextlib.ExitStack() as only:
            return _run(name, folder, build, arguments, loss or dual_loss, only)
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted{f'; {error}' if error.args else ''}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BadSampleError as error:
        sys.exit(f"{name}: {error} (--skip-bad leaves out what cannot be used)")
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except torch.cuda.OutOfMemoryError as error:
        sys.exit(
            f"{name}: {error} Try a smaller --batch (of a run that has begun: the same command with --generator RUN, "
            "its folder, and --batch N)"
        )


def _sample(folder: Path, build: type[Trainer], arguments: argparse.Namespace) -> Path:
    training_alone = ("vlm", "resume", "steps", "epochs", "batch")
    given = [f"--{n}" for n in training_alone if getattr(arguments, n) is not None]
    given += [f"--{n.replace('_', '-')}" for n in ("from_scratch", "skip_bad") if getattr(arguments, n)]
    if given:
        raise ValueError(f"--sample does not train: leave out {', '.join(given)} (--generator takes a run's folder)")
    original = read_config(arguments.cfg, folder).arguments if arguments.cfg else {}
    source = arguments.generator or original.get("sample_from") or original.get("generator")
    data = arguments.data or original.get("data")
    if data:
        check_outside(arguments.out or RUNS, data)
    return sample(
        build,
        Path(source or _packaged_start(folder)),
        read_captions(arguments.sample),
        arguments.out or RUNS,
        text_encoder=arguments.text_encoder or original.get("text_encoder"),
        data=Path(data) if data else None,
        max_words=original.get("max_words"),
        seed=_seed(arguments, original),
        device=training.choose_device(arguments.device),
    )


def _run(
    name: str,
    folder: Path,
    build: type[Trainer],
    arguments: argparse.Namespace,
    loss: Callable[[VLM, EasyDict], DualVLMLoss],
    only: contextlib.ExitStack,
) -> Path:
    device = training.choose_device(arguments.device)
    training.join_ranks(device)
    if arguments.resume is not None and arguments.resume.is_dir() and distributed.rank() == 0:
        only.enter_context(training.only_process(arguments.resume))
    saved = _saved_options(name, arguments)
    options = saved | _moved(saved, arguments) if saved else _options(name, arguments, folder)
    # A run that broke on its data may go on without what broke it.
    options["skip_bad"] = options.get("skip_bad", False) or arguments.skip_bad
    settings = EasyDict(options["settings"])
    # What `auto` meant when the run began: resumed on other hardware it stays the run that it was.
    dtype = training.choose_precision(device, options.get("precision") or settings.precision)
    options["precision"] = str(dtype).removeprefix("torch.")
    if distributed.rank() == 0 and options["data"] is None:
        make_birds(BIRDS_FOLDER, **BIRDS, progress=True)
    training.barrier()
    data = Path(options["data"] or BIRDS_FOLDER)
    if not saved:
        check_outside(arguments.out or RUNS, data)
    with may_have_moved(arguments.resume, _named(options, arguments, "data")):
        (records, lost), truth = training.open_records(data, "train", options["skip_bad"]), find_truth(data)
    if not saved and truth is None and PACKAGED in (options["vlm"], options["text_encoder"]):
        raise ValueError(
            f"--data {data}: expected with it a matcher of its words (--vlm FILE, or --text-encoder FILE for a plain "
            "run; vlm-plugin pretrain makes one), got none, and the packaged one knows the synthetic birds' words alone"
        )
    encoder = options["vlm"] or options["text_encoder"]
    with may_have_moved(arguments.resume, _named(options, arguments, "vlm", "text_encoder")):
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
    if told := unknown_words(looked_at, matcher.vocabulary, encoder, FEW):
        _say(told)
    if (world := distributed.world_size()) > 1:
        _say(f"{world} processes of {settings.batch} pictures each: {world * settings.batch} a step")
    vlm_loss = loss(matcher, settings) if options["vlm"] else None

    torch.manual_seed(options["seed"])
    trainer = build(settings, matcher, device, dtype)
    steps = _length(arguments, options, len(records))
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
        run_folder = training.shared_run_folder(arguments.out or RUNS, f"{name}{'-vlm' if vlm_loss else ''}")
        if distributed.rank() == 0:
            only.enter_context(training.only_process(run_folder))
    # By what trained the networks that it began from as well; an earlier release did not keep it.
    taught = trainer.trained_with | (marks(matcher) if vlm_loss or trainer.learns_from_matcher else frozenset())
    options["trained_with"] = options.get("trained_with") or sorted(taught)
    left_out = training.LeftOut(run_folder / "skipped.txt", keep=bool(saved))
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
    begun = _begun(records, show)
    if saved:
        _check_begun(saved, begun, f"--resume {run_folder}", data)
    if distributed.rank() == 0:
        facts = {
            "steps": steps, "epochs": None, "matcher": matcher.fingerprint, **begun,
            "matcher_reads": matcher.caption_fingerprint,
            "text_fingerprint": fingerprint(matcher.text_encoder), "versions": training.versions(),
        }  # fmt: skip
        training.write_json({**options, **facts}, run_folder / "options.json")
    if not saved:
        show.remember("before")
        _save(trainer, 0, run_folder)
    with training.StopSignal() as stop:
        _train(
            trainer, vlm_loss, matcher, records, run_folder, options, settings, (first, steps), device, show, stop,
            left_out,
        )  # fmt: skip
    if distributed.rank() == 0:
        try:
            show.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"trained; --resume {run_folder} makes table and pictures") from None
    left_out.report()
    training.leave_ranks()
    return run_folder


def _say(text: str) -> None:
    if distributed.rank() == 0:
        print(text, flush=True)


def _packaged_start(folder: Path) -> Path:
    return folder / "assets" / "birds.pt"


def _options(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a new run will do, in plain values: this is what a resumed run reads.

    An original's settings file also decides arguments; the command line's own come first.
    """
    if arguments.vlm and arguments.text_encoder:
        raise ValueError("--text-encoder: only for plain runs: with --vlm the matcher's own text encoder is used")
    if arguments.generator and arguments.from_scratch:
        raise ValueError("--from-scratch: contradicts --generator")
    packaged = (
        (arguments.cfg, arguments.data, arguments.generator, arguments.from_scratch) == (None, None, None, False)
        and (arguments.vlm or arguments.text_encoder or PACKAGED) == PACKAGED
        and _packaged_start(folder).is_file()
    )
    # Weights and rates that suit a generator that draws already ruin one that does not yet.
    default = "synthetic.yml" if packaged or arguments.generator else "scratch.yml"
    if arguments.cfg is None and arguments.generator and (arguments.generator / "options.json").is_file():
        settings, original = settings_of_run(arguments.generator, folder), {}
    else:
        settings, original = read_config(arguments.cfg or folder / "cfg" / default, folder)
    if arguments.batch is not None:
        settings.batch = arguments.batch
    _check_settings(settings)
    # A generator goes on with what it has learned to read and draw, unless something else is named.
    origin = origin_of_run(arguments.generator)
    data = arguments.data or original.get("data") or origin.get("data")
    # An original's settings with the patch's lines name a matcher, which switches the loss on there as well.
    vlm = arguments.vlm or (None if arguments.text_encoder else original.get("vlm"))
    if vlm == PACKAGED:  # A bare --vlm means the matcher at hand: an original's settings name it, or a DAMSM pair.
        vlm = original.get("vlm") or original.get("text_encoder") or origin.get("matcher") or PACKAGED
    matcher = vlm or arguments.text_encoder or original.get("text_encoder") or origin.get("matcher") or PACKAGED
    if data is None and not is_packaged(matcher):
        raise ValueError(
            f"--data: expected a folder of captioned pictures for the matcher {matcher}, got none, and the synthetic "
            "birds are drawn for the packaged matcher alone"
        )
    start = None if arguments.from_scratch else arguments.generator or original.get("generator")
    if packaged:
        start = _packaged_start(folder)
    trains = original.get("train", True)
    return {
        "baseline": name,
        "settings": json.loads(json.dumps(settings)),
        "data": _in_full(data),
        "vlm": _in_full(matcher) if vlm else None,
        "text_encoder": None if vlm else _in_full(matcher),
        "max_words": original.get("max_words"),
        "start": _in_full(start),
        "start_discriminators": original.get("discriminators", True),
        "steps": settings.steps if trains else 0,
        "epochs": original.get("epochs") if trains else None,
        "seed": _seed(arguments, original),
        "spread": True,
    }


def _seed(arguments: argparse.Namespace, original: Mapping[str, Any]) -> int:
    return training.check_seed(original.get("seed", 0) if arguments.seed is None else arguments.seed)


def _in_full(path: str | Path | None) -> str | None:
    """An existing file's or folder's whole path: a run may be resumed from another folder."""
    if path is None or str(path) == PACKAGED:
        return path
    return str(Path(path).resolve() if Path(path).exists() else path)


def _saved_options(name: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    if arguments.resume is None:
        return None
    fixed = ("cfg", "out", "batch", "seed", "generator")
    given = [f"--{n.replace('_', '-')}" for n in fixed if getattr(arguments, n) is not None]
    if given := given + ["--from-scratch"] * arguments.from_scratch:
        raise ValueError(f"--resume takes these from {arguments.resume}/options.json: leave out {', '.join(given)}")
    for file in ("options.json", "checkpoint.pt"):
        if not (arguments.resume / file).is_file():
            raise FileNotFoundError(f"--resume {arguments.resume}: expected a run's folder with {file}")
    with whole(arguments.resume / "options.json"):
        options = json.loads((arguments.resume / "options.json").read_text(encoding="utf-8"))
        if options["baseline"] != name:
            raise ValueError(f"--resume {arguments.resume}: a run of {options['baseline']}")
        return options


def _moved(options: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, str]:
    """Where files of a resumed run lie now; that they are the same is checked where they are read."""
    for name, other in (("vlm", "text_encoder"), ("text_encoder", "vlm")):
        if getattr(arguments, name) is not None and options[name] is None:
            raise ValueError(
                f"--{name.replace('_', '-')}: {arguments.resume} was begun without: its matcher is "
                f"--{other.replace('_', '-')} {options[other]}"
            )
    given = {name: getattr(arguments, name) for name in _MOVABLE}
    return {name: _in_full(path) for name, path in given.items() if path is not None}


def _named(options: Mapping[str, Any], arguments: argparse.Namespace, *names: str) -> dict[str, str | None]:
    """Option -> what a resumed run itself names for it, where the command line does not."""
    return {_MOVABLE[name]: options[name] for name in names if getattr(arguments, name) is None}


def _begun(records: Sequence[Record], show: Show) -> dict[str, Any]:
    """What a run must find again when it is resumed: as many processes, the same pictures and captions."""
    used = {"train": records, "evaluated": show.records}
    return {
        "processes": distributed.world_size(),
        "pictures": {use: f"{len(some)} (digest {training.digest_records(some)})" for use, some in used.items()},
    }


def _check_begun(saved: dict[str, Any], now: dict[str, Any], where: str, data: Path) -> None:
    # What runs of an earlier release do not say stays unchecked.
    then = now | {name: saved[name] for name in now if name in saved}
    if then["processes"] != now["processes"]:
        raise ValueError(f"{where}: begun with {_processes(then)}, got {_processes(now)}")
    for use, pictures in now["pictures"].items():
        if then["pictures"][use] != pictures:
            raise ValueError(
                f"{where}: expected the pictures and captions that {data} had when the run began, got others: "
                f"{use}: {then['pictures'][use]} then, {pictures} now"
            )


def _processes(begun: dict[str, Any]) -> str:
    return f"{begun['processes']} process{'' if begun['processes'] == 1 else 'es'}"


def _length(arguments: argparse.Namespace, options: dict[str, Any], size: int) -> int:
    if arguments.steps is not None:
        return arguments.steps
    epochs = options["epochs"] if arguments.epochs is None else arguments.epochs
    if epochs is None:
        return options["steps"]
    # An epoch of less than a batch is a step.
    return max(epochs * size // (options["settings"]["batch"] * distributed.world_size()), min(epochs, 1))


def dual_loss(matcher: VLM, settings: EasyDict) -> DualVLMLoss:
    """The dual loss as a run's settings ask for it; its weights stand at 0 until the run sets them."""
    terms = settings.vlm.terms
    if terms is None:
        terms = [term for term in TERMS if matcher.scorer is not None or not term.endswith("_general")]
        if len(terms) < len(TERMS):
            _say("this matcher has no scorer: the general terms are off (vlm-plugin pretrain --damsm trains one)")
    augment = RandomView() if settings.vlm.augment else None
    return DualVLMLoss(matcher, lambda_vvm=0.0, lambda_vlm=0.0, augment=augment, terms=terms)


def _train(
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
    stop: training.StopSignal,
    left_out: training.LeftOut,
) -> None:
    first, steps = span
    seed, rank = options["seed"], distributed.rank()
    skip_bad = options["skip_bad"]
    images = CaptionedImages(records, trainer.image_size, train=True, vocabulary=matcher.vocabulary)
    batches = training.endless_batches(
        images, settings.batch, seed, Collate(matcher.vocabulary, matcher.max_words),
        first_step=first, device=device, workers=settings.workers, skip_bad=skip_bad,
    )  # fmt: skip
    log = training.Log(run_folder / "log.jsonl", first)
    bar = training.progress(range(first, steps), initial=first, total=steps)
    kept = first
    for step in bar:
        batch = next(batches)
        if skip_bad:
            left_out.add(training.from_all_ranks(batch.skipped))
        batch = batch._replace(images=batch.images.to(device, memory_format=torch.channels_last, non_blocking=True))
        # Whatever draws from torch's global randomness from here on is the same in a resumed run.
        # (The last number sets it apart from the trainers' noise.)
        torch.manual_seed(training.mix(seed, step, rank, 3))
        with torch.no_grad():
            text = matcher.encode_tokens(batch.tokens, batch.lengths)
        if vlm_loss is not None:
            vlm_loss.lambda_vvm, vlm_loss.lambda_vlm = weights_at(step, settings.vlm)
        values = trainer.step(batch, text, step, vlm_loss)
        if step % settings.log_every == 0 or step == steps - 1:
            values = {k: float(v) for k, v in values.items()}
            if vlm_loss is not None:
                values |= _floors(vlm_loss, batch, text)
                values |= {"lambda_vvm": vlm_loss.lambda_vvm, "lambda_vlm": vlm_loss.lambda_vlm}
            log.add(step=step, **values)
            _check_finite(values, step, run_folder, kept)
            shown = {k: f"{values[k]:.2f}" for k in ("discriminator", "generator")}
            bar.set_postfix(shown | ({"left out": len(left_out.names)} if left_out.names else {}))
        done = step + 1
        stopping = training.on_any_rank(stop.asked, device)
        if done % settings.checkpoint_every == 0 or done == steps or stopping:
            _check_finite(trainer.state(), step, run_folder, kept)
            _save(trainer, done, run_folder)
            kept = done
        if done % settings.sample_every == 0 and done < steps and rank == 0:
            show.grid(f"step {done}", run_folder / f"samples-{done:06d}.png")
        if stopping:
            if rank == 0:
                print(f"\nstopped after step {done}; go on with --resume {run_folder}", flush=True)
            # A launcher ends the other processes when the first is gone: none goes before the checkpoint is written.
            training.leave_ranks()
            sys.exit(128 + signal.SIGTERM)


def _save(trainer: Trainer, step: int, run_folder: Path) -> None:
    if distributed.rank() == 0:
        write_file({"step": step, "trainer": trainer.state()}, run_folder / "checkpoint.pt")


def _check_finite(content: Mapping[str, Any], step: int, run_folder: Path, kept: int) -> None:
    """End the run on every rank, before its checkpoint is overwritten, where one of them holds NaN or infinity."""
    name = not_finite(content)
    if names := training.from_all_ranks([] if name is None else [name]):
        raise ValueError(
            f"step {step}: expected finite numbers, got NaN or infinity in {names[0]}: the training has broken down. "
            f"{run_folder}/checkpoint.pt stays as it was after step {kept}; to go on from it with lower rates or "
            f"weights, begin a run with --generator {run_folder} and other settings (--cfg)"
        )


@torch.no_grad()
def _floors(vlm_loss: DualVLMLoss, batch: Batch, text: Features) -> dict[str, float]:
    """Each term on real pairs: with the caption the real picture itself, with the real picture its mirror image.

    A generator whose term lies below its floor exploits the matcher.
    """
    real_pairs = vlm_loss(batch.images, text, batch.images.flip(3), class_ids=batch.class_ids)
    return {f"floor_{name}": float(value) for name, value in real_pairs.terms.items()}
