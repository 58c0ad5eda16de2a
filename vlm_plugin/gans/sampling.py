"""Pictures of captions, without training: `vlm-plugin sample`, and `--sample` of every trainer."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlm_plugin.data.captions import TABLES, table_captions
from vlm_plugin.data.images import to_image
from vlm_plugin.evaluation.examination import PER_CAPTION
from vlm_plugin.files import NotAFileError, open_file, write_json
from vlm_plugin.gans.config import RUNS, may_have_moved, packaged_start
from vlm_plugin.gans.configure import seed_of
from vlm_plugin.gans.find import Baseline
from vlm_plugin.gans.saved import Saved
from vlm_plugin.gans.settings import Original, read_config
from vlm_plugin.gans.trainer import Trainer, scaled
from vlm_plugin.matcher.choose import load_matcher, unknown_words
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.report.sheets import Heats, heat_sheet, sample_sheet
from vlm_plugin.terminal import check_outside
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import new_run_folder, versions
from vlm_plugin.training.stream import check_seed, noise

# Rows of the two sheets at most; every picture is also written by itself.
_SHEET_ROWS, _ATTENTION_ROWS = 50, 8


class Source(NamedTuple):
    """What to draw with: a generator, and what conditions it."""

    path: Path
    """The run's folder or file, for messages and `samples.json`."""
    trainer: type[Trainer]
    """The baseline's."""
    saved: Saved
    """Its networks, see `Trainer.read`; no discriminators are needed."""
    text_encoder: str | None = None
    """What `load_matcher` takes; None for the one that the networks' own file names."""
    data: Path | None = None
    """Folder with the vocabulary of a DAMSM text encoder; None for the one that the networks' own file names."""
    max_words: int | None = None
    """Words kept of a caption; None for what the networks' or the text encoder's file says."""


def read_captions(words: Sequence[str], argument: str = "--sample") -> list[str]:
    """Captions of a command line: each word is a caption, a text file with one a line, or a table of `TABLES`.

    Args:
        words: captions and names of files.
        argument: where they were given, for messages.

    Raises:
        FileNotFoundError: what reads like a file's name (one of their extensions, or a path without a blank) is none.
        ValueError: a folder, a text file that is no UTF-8 or a table that is none, or no caption at all.
    """
    captions: list[str] = []
    for word in words:
        # Not Path's: that raises where a caption is too long for a name.
        if os.path.isdir(word):
            raise ValueError(f"{argument} {word}: expected a caption or a file of captions, got a folder")
        if os.path.isfile(word):
            captions += _captions_of(word, argument)
        elif _reads_like_a_file(word):
            raise FileNotFoundError(f"{argument} {word}: {_why_no_file(word)}")
        else:
            captions.append(word)
    captions = [" ".join(caption.split()) for caption in captions if caption.strip()]
    if not captions:
        raise ValueError(f"{argument}: expected captions, got none in {', '.join(map(repr, words))}")
    return captions


def _captions_of(file: str, argument: str) -> list[str]:
    if file.lower().endswith(TABLES):
        return table_captions(file)
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{argument} {file}: expected UTF-8 text ({error})") from None


def _why_no_file(path: str) -> str:
    """What stands in the place of a file that `os.path.isfile` does not see."""
    try:
        open_file(path).close()
    except NotAFileError as error:
        return f"expected a file of captions, found {error.strerror}"
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        pass
    return "no such file"


def _reads_like_a_file(word: str) -> bool:
    path = any(mark in word for mark in (os.sep, os.altsep) if mark) and word.split() == [word]
    return path or word.lower().endswith((".txt", *TABLES))


def sample_with_arguments(baseline: Baseline, build: type[Trainer], arguments: argparse.Namespace) -> Path:
    """Draw captions as a trainer's command line asks, with `--sample`; see `sample`.

    Args:
        baseline: whose settings files and packaged start are meant.
        build: the baseline's trainer.
        arguments: of `config.parser`.

    Raises:
        FileNotFoundError, ValueError: the message names the argument or file.
    """
    training_alone = ("vlm", "resume", "steps", "epochs", "batch")
    given = [f"--{n}" for n in training_alone if getattr(arguments, n) is not None]
    given += [f"--{n.replace('_', '-')}" for n in ("from_scratch", "skip_bad") if getattr(arguments, n)]
    if given:
        raise ValueError(f"--sample does not train: leave out {', '.join(given)} (--generator takes a run's folder)")
    original = read_config(arguments.cfg, baseline).original if arguments.cfg else Original()
    generator = arguments.generator or original.sample_from or original.generator
    path, data = Path(generator or packaged_start(baseline.folder)), arguments.data or original.data
    out = arguments.out or RUNS
    if data:  # before anything is read
        check_outside(out, data)
    captions, device = read_captions(arguments.sample), choose_device(arguments.device)
    seed = seed_of(arguments, original)
    source = Source(
        path,
        build,
        build.read(path, discriminators=False),
        text_encoder=arguments.text_encoder or original.text_encoder,
        data=Path(data) if data else None,
        max_words=original.max_words,
    )
    return sample(source, captions, out, seed=seed, device=device)


@torch.no_grad()
def sample(source: Source, captions: Sequence[str], out: Path, *, seed: int = 0, device: torch.device) -> Path:
    """Draw captions, each at the same few noises, and write the pictures.

    Args:
        source: what to draw with.
        captions: what to draw.
        out: where run folders are made.
        seed: decides the noise.
        device: where to compute.

    Returns:
        The folder: `samples.png` (a sheet), `pictures/CAPTION-NOISE.png`, `samples.json`, and `attention.png` where the
        generator attends to words.

    Raises:
        FileNotFoundError, ValueError: the message names the argument or file.
    """
    check_seed(seed)
    if source.data:
        check_outside(out, source.data)
    generator, matcher, name = _load(source, device)
    words = [matcher.words(caption) for caption in captions]  # refuses a caption without a known one, before any work
    if told := unknown_words(captions, matcher.vocabulary, name):
        print(told, flush=True)
    noises = noise((PER_CAPTION, generator.noise_dim), device, seed, 4)
    folder = new_run_folder(out, f"{source.trainer.name.lower()}-sample")
    (folder / "pictures").mkdir()
    digits = len(str(len(captions) - 1))
    sheet: list[Tensor] = []
    heats: list[Heats] = []
    for row, caption in enumerate(progress(captions)):
        text = matcher.encode_text([caption] * PER_CAPTION)
        images, attention = generator.draw(noises, scaled(text) if source.saved.normalise_text else text)
        images = images.float().cpu()
        for column, image in enumerate(images):
            to_image(image).save(folder / "pictures" / f"{row:0{digits}d}-{column}.png")
        # Of thousands of captions, only what the sheets show stays in memory.
        if row < _SHEET_ROWS:
            sheet.append(images)
        for stage, weights in enumerate(attention if row < _ATTENTION_ROWS else [], start=2):
            named = list(zip(words[row], weights[0].float().cpu(), strict=True))
            heats.append(Heats(f"{caption} (stage {stage})", images[0], named))

    sample_sheet(folder / "samples.png", captions[:_SHEET_ROWS], {source.path.absolute().name: sheet})
    written = ["samples.png", "pictures/", "samples.json"]
    if heats:
        heat_sheet(folder / "attention.png", heats)
        written.append("attention.png")
    facts = {"captions": list(captions), "generator": str(source.path), "matcher": matcher.fingerprint, "seed": seed}
    write_json({**facts, "versions": versions()}, folder / "samples.json")
    print(f"written to {folder}: {', '.join(written)}", flush=True)
    return folder


def _load(source: Source, device: torch.device) -> tuple[nn.Module, VLM, str]:
    """The generator, what encodes its captions, and what that is called."""
    path, saved = source.path, source.saved
    name = source.text_encoder or saved.matcher
    if name is None:
        raise ValueError(f"--text-encoder: {path} does not say which text encoder it was trained with; name its file")
    moved = {
        "--text-encoder FILE": None if source.text_encoder else name,
        "--data DIR": None if source.data else saved.data,
    }
    with may_have_moved(path, moved):
        matcher = load_matcher(name, source.data or saved.data, device)
    matcher.max_words = source.max_words or saved.max_words or matcher.max_words
    saved.check(matcher, str(path))
    generator = source.trainer.load_generator(saved, str(path)).to(device).eval()
    if generator.embed_dim != matcher.embed_dim:
        raise ValueError(
            f"--text-encoder {name}: gives vectors of width {matcher.embed_dim}, {path} reads {generator.embed_dim}"
        )
    return generator, matcher, name
