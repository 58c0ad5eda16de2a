"""One training run of a baseline, from arguments to table and pictures: what AttnGAN's and DF-GAN's trainers share."""

from __future__ import annotations

import argparse
import difflib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from easydict import EasyDict
from torch import Tensor

from vlm_plugin import VLM, DualVLMLoss, Features, distributed, model
from vlm_plugin.augment import RandomView
from vlm_plugin.data import BirdTruth, CaptionedImages, Record, collate, find_truth, make_birds, open_split, true_pairs
from vlm_plugin.data.birds import said_by
from vlm_plugin.data.dataset import Batch
from vlm_plugin.tools import pictures, training
from vlm_plugin.tools.evaluation import Table
from vlm_plugin.tools.judge import Judge

# What the main job draws when no data is given; the packaged files were made from more birds of the same kind.
BIRDS = {"train": 2000, "validation": 200, "test": 1000, "size": 64, "seed": 0}
BIRDS_FOLDER = Path("data/birds")
# What --vlm without a file stands for: never a file of some name that happens to lie in the working folder.
PACKAGED = "packaged"
PACKAGED_MATCHER = "birds.vlm.pt"
_SHOWN, _PER_CAPTION = 8, 4
# A mismatched pair needs a second caption, a distance a second picture.
_LEAST = {"batch": 2, "evaluated": 2, "log_every": 1, "sample_every": 1, "checkpoint_every": 1}


class Baseline(Protocol):
    """What a baseline's trainer offers to `run`."""

    z_dim: int

    def step(self, batch: Batch, text: Features, step: int, vlm_loss: DualVLMLoss | None) -> dict[str, Tensor]:
        """One update of every network; detached scalars by name."""

    def sample(self, noise: Tensor, text: Features) -> Tensor:
        """`(B, 3, S, S)` pictures in [-1, 1] of the averaged generator."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    def load_start(self, path: Path) -> None:
        """Take the networks of a packaged start."""


def parser(name: str) -> argparse.ArgumentParser:
    """Arguments of a baseline's main.py."""
    result = argparse.ArgumentParser(
        prog=f"baselines/{name}/main.py",
        description=f"Train {name}; with --vlm, the same with the dual vision-language matching loss. "
        "Without --data: synthetic birds, from the packaged start.",
    )
    add = result.add_argument
    add("--vlm", nargs="?", const=PACKAGED, metavar="CHECKPOINT", help="add the dual loss of this matcher")
    add("--cfg", type=Path, help="YAML settings (default: cfg/synthetic.yml)")
    add("--data", type=Path, help="folder of captioned pictures (default: synthetic birds, drawn into data/birds)")
    add("--out", type=Path, default=Path("runs"), help="where run folders are made (default: runs)")
    add("--resume", type=Path, metavar="RUN", help="go on with an interrupted run, from its folder")
    length = result.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_count, help="generator updates")
    length.add_argument("--epochs", type=_count, help="passes over the train split")
    add("--batch", type=_count, help="pictures in a batch of each process")
    add("--seed", type=_count, help="decides initial weights, order and noise (default: 0)")
    add("--device", help="cuda, cuda:1, cpu (default: the GPU where there is one)")
    add("--text-encoder", metavar="FILE", help="plain runs: the matcher whose text encoder conditions the generator")
    add("--from-scratch", action="store_true", help="do not start from the packaged generator")
    return result


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return int(text)


def read_config(path: Path, known: Path) -> EasyDict:
    """Settings of a YAML file.

    Args:
        path: the file.
        known: a complete file, which says what settings there are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML mapping, an unknown key (the nearest known one is named), a missing one, or a value of
            another kind than the known one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--cfg {path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    _check_keys(content, yaml.safe_load(known.read_text(encoding="utf-8")), path, "")
    return EasyDict(content)


def _check_keys(content: object, known: dict, path: Path, prefix: str) -> None:
    if not isinstance(content, dict):
        where = f"under {prefix[:-1]}" if prefix else "of settings"
        raise ValueError(f"{path}: expected a mapping {where}, got {content!r}")
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0)
            raise ValueError(f"{path}: unknown setting {prefix}{key}; did you mean {prefix}{near[0]}?")
    if missing := [key for key in known if key not in content]:
        raise ValueError(f"{path}: missing setting {prefix}{missing[0]}")
    for key, value in known.items():
        if isinstance(value, dict):
            _check_keys(content[key], value, path, f"{prefix}{key}.")
        elif value is not None and not _same_kind(content[key], value):
            # YAML takes 1e-4 for a word.
            hint = " (in YAML 1.0e-4 is a number, 1e-4 is not)" if isinstance(value, float) else ""
            raise ValueError(f"{path}: {prefix}{key}: expected a value like {value!r}, got {content[key]!r}{hint}")


def _same_kind(value: object, known: object) -> bool:
    if isinstance(known, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(known, list):
        return isinstance(value, list) and len(value) == len(known) and all(map(_same_kind, value, known))
    return type(value) is type(known)


def _check_least(settings: EasyDict) -> None:
    for name, least in _LEAST.items():
        if settings[name] < least:
            raise ValueError(f"{name}: expected at least {least}, got {settings[name]}")


def weights_at(step: int, settings: EasyDict) -> tuple[float, float]:
    """(lambda_vvm, lambda_vlm) at a step: each half ramps up linearly from its own start. Source: ours."""
    return (
        settings.lambda_vvm * training.ramp(step + 1, settings.vvm_start, settings.vvm_warmup),
        settings.lambda_vlm * training.ramp(step + 1, settings.vlm_start, settings.vlm_warmup),
    )


def run(
    name: str,
    folder: Path,
    build: Callable[[EasyDict, int, torch.device, torch.dtype], Baseline],
    argv: Sequence[str] | None = None,
) -> Path:
    """Train, and end with a table and pictures.

    Args:
        name: the baseline's name.
        folder: the baseline's folder, with `cfg/` and `assets/`.
        build: makes the trainer from settings, the width of a sentence vector, device and precision.
        argv: arguments; the process's own when left out.

    Returns:
        The run's folder.
    """
    arguments = parser(name).parse_args(argv)
    try:
        return _run(name, folder, build, arguments)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"{name}: {error}")


def _run(name: str, folder: Path, build: Callable, arguments: argparse.Namespace) -> Path:
    device = training.choose_device(arguments.device)
    training.join_ranks(device)
    saved = _saved_options(arguments)
    options = saved or _options(arguments, folder)
    settings = EasyDict(options["settings"])
    dtype = training.choose_precision(device, settings.precision)
    if distributed.rank() == 0 and options["data"] is None:
        make_birds(BIRDS_FOLDER, **BIRDS, progress=True)
    training.barrier()
    data = Path(options["data"] or BIRDS_FOLDER)
    records, truth = open_split(data, "train"), find_truth(data)
    matcher = load_matcher(options, device).requires_grad_(False)
    if saved and saved.get("matcher") not in (None, matcher.fingerprint):
        raise ValueError(
            f"--resume {arguments.resume}: started with the matcher {saved['matcher']}, but "
            f"{options['vlm'] or options['text_encoder']} is {matcher.fingerprint} now"
        )
    vlm_loss = _loss(matcher, settings) if options["vlm"] else None

    torch.manual_seed(options["seed"])
    trainer = build(settings, matcher.embed_dim, device, dtype)
    steps = _length(arguments, settings, len(records), saved)
    first = 0
    if saved:
        run_folder = arguments.resume
        # Onto the CPU: Adam's step counters stay where they are loaded to, and on a GPU every look at one waits for it.
        checkpoint = torch.load(run_folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        trainer.load_state(checkpoint["trainer"])
        first = checkpoint["step"]
        if distributed.rank() == 0:
            print(f"resuming {run_folder} at step {first} of {steps}", flush=True)
    else:
        run_folder = training.shared_run_folder(arguments.out, f"{name}{'-vlm' if vlm_loss else ''}")
        if options["start"] is not None:
            trainer.load_start(Path(options["start"]))
    if distributed.rank() == 0:
        facts = {"steps": steps, "matcher": matcher.fingerprint, "versions": training.versions()}
        training.write_json({**options, **facts}, run_folder / "options.json")

    show = Show(run_folder, data, truth, matcher, options, settings, trainer)
    if not saved:
        show.remember("before")
        _save(trainer, 0, run_folder)
    with training.StopSignal() as stop:
        _train(trainer, vlm_loss, matcher, records, run_folder, options, settings, (first, steps), device, show, stop)
    if distributed.rank() == 0:
        show.finish()
    training.leave_ranks()
    return run_folder


def load_matcher(options: Mapping[str, Any], device: torch.device | str = "cpu") -> VLM:
    """The matcher of a run, whether it gave the loss or encoded the captions alone."""
    name = options["vlm"] or options["text_encoder"]
    return VLM.load(model.ASSETS / PACKAGED_MATCHER if name == PACKAGED else name, map_location=device)


def _options(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a new run will do, in plain values: this is what a resumed run reads."""
    standard = folder / "cfg" / "synthetic.yml"
    settings = read_config(arguments.cfg or standard, standard)
    if arguments.batch is not None:
        settings.batch = arguments.batch
    if arguments.vlm and arguments.text_encoder:
        raise ValueError("--text-encoder: only for plain runs: with --vlm the matcher's own text encoder is used")
    _check_least(settings)
    matcher = arguments.vlm or arguments.text_encoder or PACKAGED
    if matcher != PACKAGED and Path(matcher).is_file():
        # In full, as the data's: a run may be resumed from another folder.
        matcher = str(Path(matcher).resolve())
    start = folder / "assets" / "birds.pt"
    default = arguments.data is None and arguments.cfg is None and not arguments.from_scratch
    return {
        "settings": json.loads(json.dumps(settings)),
        "data": None if arguments.data is None else str(arguments.data.resolve()),
        "vlm": matcher if arguments.vlm else None,
        "text_encoder": None if arguments.vlm else matcher,
        "start": str(start) if default and matcher == PACKAGED and start.is_file() else None,
        "seed": arguments.seed or 0,
    }


def _saved_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if arguments.resume is None:
        return None
    fixed = ("vlm", "cfg", "data", "batch", "seed", "text_encoder")
    if given := [f"--{n.replace('_', '-')}" for n in fixed if getattr(arguments, n) is not None]:
        raise ValueError(f"--resume takes these from {arguments.resume}/options.json: leave out {', '.join(given)}")
    for file in ("options.json", "checkpoint.pt"):
        if not (arguments.resume / file).is_file():
            raise FileNotFoundError(f"--resume {arguments.resume}: expected a run's folder with {file}")
    return json.loads((arguments.resume / "options.json").read_text(encoding="utf-8"))


def _length(arguments: argparse.Namespace, settings: EasyDict, size: int, saved: dict | None) -> int:
    if arguments.steps is not None:
        return arguments.steps
    if arguments.epochs is not None:
        return max(arguments.epochs * size // (settings.batch * distributed.world_size()), 1)
    return saved["steps"] if saved else settings.steps


def _loss(matcher: VLM, settings: EasyDict) -> DualVLMLoss:
    augment = RandomView() if settings.vlm.augment else None
    terms = {"terms": settings.vlm.terms} if settings.vlm.terms is not None else {}
    return DualVLMLoss(matcher, lambda_vvm=0.0, lambda_vlm=0.0, augment=augment, **terms)


def _train(
    trainer: Baseline,
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
) -> None:
    first, steps = span
    seed, rank = options["seed"], distributed.rank()
    images = CaptionedImages(records, settings.image_size, train=True)
    batches = training.endless_batches(
        images, settings.batch, seed, collate, first_step=first, device=device, workers=settings.workers
    )
    log = training.Log(run_folder / "log.jsonl", first)
    bar = training.progress(range(first, steps), initial=first, total=steps)
    for step in bar:
        batch = next(batches)
        batch = batch._replace(images=batch.images.to(device, memory_format=torch.channels_last, non_blocking=True))
        # Whatever draws from torch's global randomness from here on is the same in a resumed run.
        # (The last number sets it apart from the trainers' noise.)
        torch.manual_seed(training.mix(seed, step, rank, 3))
        with torch.no_grad():
            text = matcher.encode_text(batch.captions)
        if vlm_loss is not None:
            vlm_loss.lambda_vvm, vlm_loss.lambda_vlm = weights_at(step, settings.vlm)
        values = trainer.step(batch, text, step, vlm_loss)
        if step % settings.log_every == 0 or step == steps - 1:
            values = {k: float(v) for k, v in values.items()}
            if vlm_loss is not None:
                values |= _floors(vlm_loss, batch, text)
                values |= {"lambda_vvm": vlm_loss.lambda_vvm, "lambda_vlm": vlm_loss.lambda_vlm}
            log.add(step=step, **values)
            bar.set_postfix({k: f"{values[k]:.2f}" for k in ("discriminator", "generator")})
        done = step + 1
        if done % settings.checkpoint_every == 0 or done == steps or stop.asked:
            _save(trainer, done, run_folder)
        if done % settings.sample_every == 0 and done < steps and rank == 0:
            show.grid(f"step {done}", run_folder / f"samples-{done:06d}.png")
        if stop.asked:
            if rank == 0:
                print(f"\nstopped after step {done}; go on with --resume {run_folder}", flush=True)
            sys.exit(128 + signal.SIGTERM)


def _save(trainer: Baseline, step: int, run_folder: Path) -> None:
    if distributed.rank() == 0:
        training.save_atomically({"step": step, "trainer": trainer.state()}, run_folder / "checkpoint.pt")


@torch.no_grad()
def _floors(vlm_loss: DualVLMLoss, batch: Batch, text: Features) -> dict[str, float]:
    """Each term on real pairs: with the caption the real picture itself, with the real picture its mirror image.

    A generator whose term lies below its floor exploits the matcher.
    """
    real_pairs = vlm_loss(batch.images, text, batch.images.flip(3), class_ids=batch.class_ids)
    return {f"floor_{name}": float(value) for name, value in real_pairs.terms.items()}


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
        trainer: Baseline,
    ) -> None:
        self.folder, self.data, self.matcher = run_folder, data, matcher
        self.settings, self.trainer, self.options = settings, trainer, options
        self.truth = truth
        # Now and not at the end: a missing file should not cost a whole run.
        self.judge = Judge.load().to(matcher.device) if truth is not None else None
        self.records = open_split(data, "test")[: settings.evaluated]
        images = CaptionedImages(self.records, settings.image_size, train=False)
        self.real = collate([images[i] for i in range(len(images))])
        # Spread over the split: neighbours are often of one class.
        self.shown = list(range(0, len(images), max(len(images) // _SHOWN, 1)))[:_SHOWN]

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
        table = self._table()
        others = CaptionedImages(
            open_split(self.data, "train")[-len(self.records) :], self.settings.image_size, train=False
        )
        table.add("real", self.real.images, distance_of=torch.stack([others[i].image for i in range(len(others))]))
        table.add("before", before["pictures"].float())
        table.add("after", after)
        text = table.text_table()
        print("\n" + text + "\n", flush=True)
        (self.folder / "results.md").write_text(text + "\n", encoding="utf-8")
        training.write_json(
            {
                "rows": table.rows, "columns": table.describe(), "captions": len(self.records), "data": self.data.name,
                "matcher": self.matcher.fingerprint, "circular": table.circular, "options": self.options,
                "versions": training.versions(),
            },
            self.folder / "results.json",
        )  # fmt: skip
        pictures.sample_sheet(
            self.folder / "samples.png",
            self._captions(),
            {"real": self._real(), "before": list(before["shown"].float()), "after": list(after_shown)},
        )
        written = ["results.md", "results.json", "samples.png"]
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

    def _table(self) -> Table:
        captions = self.real.captions
        if self.truth is not None:
            mismatched = ~true_pairs(self.truth.pictures(self.real.keys), *said_by(captions))
        else:
            mismatched = self.real.class_ids[:, None] != self.real.class_ids[None, :]
        trained_with = self.matcher.fingerprint if self.options["vlm"] else None
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
            noise = training.noise((len(captions), self.trainer.z_dim), self.matcher.device, 1, start)
            parts.append(self._sample(noise, captions))
        return torch.cat(parts)

    def _generate_shown(self) -> Tensor:
        """`(R, K, 3, S, S)`, K pictures of each shown caption."""
        noise = training.noise((len(self.shown), _PER_CAPTION, self.trainer.z_dim), self.matcher.device, 2)
        return torch.stack([self._sample(z, [c] * len(z)) for z, c in zip(noise, self._captions(), strict=True)])

    @torch.no_grad()
    def _sample(self, noise: Tensor, captions: Sequence[str]) -> Tensor:
        return self.trainer.sample(noise, self.matcher.encode_text(captions)).float().cpu()
