"""Pictures of captions, without training: what `main.py --sample` does for every baseline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlm_plugin.data.captions import TABLES, table_captions
from vlm_plugin.data.images import to_image
from vlm_plugin.evaluation.examination import PER_CAPTION
from vlm_plugin.files import write_json
from vlm_plugin.gans.config import may_have_moved
from vlm_plugin.gans.trainer import Trainer, scaled
from vlm_plugin.matcher.choose import load_matcher, unknown_words
from vlm_plugin.report.sheets import Heats, heat_sheet, sample_sheet
from vlm_plugin.training import stream as stream
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import new_run_folder, versions

# Rows of the two sheets at most; every picture is also written by itself.
_SHEET_ROWS, _ATTENTION_ROWS = 50, 8


def read_captions(words: Sequence[str]) -> list[str]:
    """Captions of a command line: each word is a caption, a text file with one a line, or a table of `score.TABLES`.

    Raises:
        FileNotFoundError: what reads like a file's name (one of their extensions, or a path without a blank) is none.
        ValueError: a folder, a text file that is no UTF-8 or a table that is none, or no caption at all.
    """
    captions: list[str] = []
    for word in words:
        # Not Path's: that raises where a caption is too long for a name.
        if os.path.isdir(word):
            raise ValueError(f"--sample {word}: expected a caption or a file of captions, got a folder")
        if os.path.isfile(word):
            captions += _captions_of(word)
        elif _reads_like_a_file(word):
            raise FileNotFoundError(f"--sample {word}: no such file")
        else:
            captions.append(word)
    captions = [" ".join(caption.split()) for caption in captions if caption.strip()]
    if not captions:
        raise ValueError(f"--sample: expected captions, got none in {', '.join(map(repr, words))}")
    return captions


def _captions_of(file: str) -> list[str]:
    if file.lower().endswith(TABLES):
        return table_captions(file)
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--sample {file}: expected UTF-8 text ({error})") from None


def _reads_like_a_file(word: str) -> bool:
    path = any(mark in word for mark in (os.sep, os.altsep) if mark) and word.split() == [word]
    return path or word.lower().endswith((".txt", *TABLES))


@torch.no_grad()
def sample(
    trainer: type[Trainer],
    source: Path,
    captions: Sequence[str],
    out: Path,
    *,
    text_encoder: str | None,
    data: Path | None = None,
    max_words: int | None = None,
    seed: int = 0,
    device: torch.device,
) -> Path:
    """Draw captions, each at the same few noises, and write the pictures.

    Args:
        trainer: the baseline's.
        source: networks, see `Trainer.read`.
        captions: what to draw.
        out: where run folders are made.
        text_encoder: what `load_matcher` takes; None for the one that `source` names.
        data: folder with the vocabulary of a DAMSM text encoder; None for the one that `source` names.
        max_words: words kept of a caption; None for what `source` or the text encoder's file says.
        seed: decides the noise.
        device: where to compute.

    Returns:
        The folder: `samples.png` (a sheet), `pictures/CAPTION-NOISE.png`, `samples.json`, and `attention.png` where the
        generator attends to words.

    Raises:
        FileNotFoundError, ValueError: the message names the argument or file.
    """
    saved = trainer.read(source, discriminators=False)
    name = text_encoder or saved.matcher
    if name is None:
        raise ValueError(f"--text-encoder: {source} does not say which text encoder it was trained with; name its file")
    moved = {"--text-encoder FILE": None if text_encoder else name, "--data DIR": None if data else saved.data}
    with may_have_moved(source, moved):
        matcher = load_matcher(name, data or saved.data, device)
    matcher.max_words = max_words or saved.max_words or matcher.max_words
    saved.check(matcher, str(source))
    generator = trainer.load_generator(saved, str(source)).to(device).eval()
    if generator.embed_dim != matcher.embed_dim:
        raise ValueError(
            f"--text-encoder {name}: gives vectors of width {matcher.embed_dim}, {source} reads {generator.embed_dim}"
        )
    words = [matcher.words(caption) for caption in captions]  # refuses a caption without a known one, before any work
    if told := unknown_words(captions, matcher.vocabulary, name):
        print(told, flush=True)
    noise = stream.noise((PER_CAPTION, generator.noise_dim), device, seed, 4)
    folder = new_run_folder(out, f"{trainer.name.lower()}-sample")
    (folder / "pictures").mkdir()
    digits = len(str(len(captions) - 1))
    sheet: list[Tensor] = []
    heats: list[Heats] = []
    for row, caption in enumerate(progress(captions)):
        text = matcher.encode_text([caption] * PER_CAPTION)
        images, attention = generator.draw(noise, scaled(text) if saved.normalise_text else text)
        images = images.float().cpu()
        for column, image in enumerate(images):
            to_image(image).save(folder / "pictures" / f"{row:0{digits}d}-{column}.png")
        # Of thousands of captions, only what the sheets show stays in memory.
        if row < _SHEET_ROWS:
            sheet.append(images)
        for stage, weights in enumerate(attention if row < _ATTENTION_ROWS else [], start=2):
            named = list(zip(words[row], weights[0].float().cpu(), strict=True))
            heats.append(Heats(f"{caption} (stage {stage})", images[0], named))

    sample_sheet(folder / "samples.png", captions[:_SHEET_ROWS], {source.absolute().name: sheet})
    written = ["samples.png", "pictures/", "samples.json"]
    if heats:
        heat_sheet(folder / "attention.png", heats)
        written.append("attention.png")
    write_json(
        {
            "captions": list(captions), "generator": str(source), "matcher": matcher.fingerprint, "seed": seed,
            "versions": versions(),
        },
        folder / "samples.json",
    )  # fmt: skip
    print(f"written to {folder}: {', '.join(written)}", flush=True)
    return folder
