"""Scores pictures that any generator drew: VLMS, the three levels, and the words that each picture misses most.

The rows come best first: by VLMS or, where the matcher has no scorer, by the global level. Take a matcher that had no
part in training the generator: to the one that trained it every picture looks better than it is.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_plugin.data.captions import counted, natural_key, read_captions
from vlm_plugin.data.images import central_square, load_image
from vlm_plugin.evaluation.distances import FOLDS
from vlm_plugin.features import Features
from vlm_plugin.files import check_writable, write_text
from vlm_plugin.matcher.choose import load_matcher, unknown_words
from vlm_plugin.matcher.vlm import VLM, check_scorer
from vlm_plugin.matching import GAMMA1, GAMMA2, context_cosines, global_scores, local_scores
from vlm_plugin.metrics.base import mean_and_spread
from vlm_plugin.terminal import check_outside
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.ranks import progress

COLUMNS = ("file_name", "caption", "vlms", "local", "global", "general", "missed")
# A word's cosine is compared with those in so many pictures; with fewer than three there are no two others.
_COMPARED, _FEWEST_COMPARED = 32, 3
# Cosines of one picture in two batches differ by rounding, far below this.
_COSINE_ROUNDING = 1e-5
_WORDS_MISSED = 3  # of each row
# What `describe` shows of the table: the best rows and as many of the worst, and letters of a caption.
_ROWS_SHOWN, _CAPTION_SHOWN = 3, 80


class Row(NamedTuple):
    """One picture and how well it fits its caption."""

    file_name: str
    """Its path within the folder, parts separated by "/"."""
    caption: str
    vlms: float | None
    """The scorer's score in (0, 1), the sigmoid of `general`; None where the matcher has no scorer."""
    local_score: float
    """`vlm_plugin.matching.local_scores` of the pair."""
    global_score: float
    """Cosine of the global vectors, in [-1, 1]."""
    general: float | None
    """The scorer's logit; None where the matcher has no scorer."""
    missed: tuple[tuple[str, float], ...]
    """Up to three words that the picture misses, worst first, and the cosine of each with what it attends to."""


def score_folder(
    vlm: str, images: Path, captions: Path, out: Path, *, batch: int = 32, device: str | None = None
) -> None:
    """Score a folder of pictures, write the table and print what it says.

    Args:
        vlm: the matcher, as `load_matcher` takes it.
        images: the folder.
        captions: file of captions, as `read_captions` takes it.
        out: the table to write.
        batch: pictures at a time; changes numbers by rounding alone.
        device: the GPU when left out, where there is one.

    Raises:
        OSError, ValueError: the message names the argument or file.
    """
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    check_outside(out, images, "file")
    if os.path.realpath(out) == os.path.realpath(captions):
        raise ValueError(f"out: expected another file than the captions, got {out}")
    place = choose_device(device)
    named = read_captions(captions, images)
    matcher = load_matcher(vlm, device=place)
    check_writable(out)
    rows = score(matcher, images, named, batch=batch)
    write_scores(rows, out)
    told = unknown_words(list(named.values()), matcher.vocabulary, vlm)
    lines = [describe(rows), *([told] if told else [])]
    lines += [f"matcher {matcher.fingerprint} ({vlm})", f"wrote {out}, best first"]
    print("\n".join(lines))


@torch.no_grad()
def score(vlm: VLM, images: str | Path, captions: Mapping[str, str], *, batch: int = 32) -> list[Row]:
    """Score every picture with its caption.

    The whole picture is scored, not the crop of training: it is resized until its shorter side is what the matcher's
    image encoder takes; of a picture that is not square the central square counts.

    A word is missed if another picture shows it better. For up to 32 pictures of the same set (a fixed draw), the
    cosine of the word's vector with the context that it attends to is taken; the words are ranked by how far the
    picture's own cosine lies below the best of these, and words that no other picture shows better are left out. It is
    a ranking: a picture that fits its caption has such words too. The plain cosine, which decides where there are fewer
    than three pictures, ranks function words ("with", "a") first in every caption; the mean over the other pictures in
    place of the best finds fewer wrong words. Words that the matcher does not know are never missed.

    Args:
        vlm: the matcher.
        images: the folder.
        captions: a picture's path within the folder -> its caption, as `read_captions` returns them.
        batch: pictures at a time; changes numbers by rounding alone.

    Returns:
        A row for each caption, best first (see the module); scores that agree in four significant digits stand in
        natural order of the file names.

    Raises:
        FileNotFoundError: a picture is missing.
        ValueError: no captions, a batch below 1, a picture that cannot be read, or a caption without a word that the
            matcher knows. The message names the picture. Or a scorer that was trained on other encoders.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1 picture, got {batch}")
    if not captions:
        raise ValueError("captions: expected at least one, got none")
    if vlm.scorer is not None:
        check_scorer(vlm)
    vlm.eval()
    names = sorted(captions, key=natural_key)
    for name in names:
        _check_words(vlm, name, captions[name])
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(0), device="cpu")[:_COMPARED].tolist()
    others = None
    if len(names) >= _FEWEST_COMPARED:
        others = vlm.encode_image(_load(vlm, images, [names[i] for i in drawn]))
    rows = []
    for first in progress(range(0, len(names), batch), desc="score"):
        part = names[first : first + batch]
        image = vlm.encode_image(_load(vlm, images, part))
        rows += _rows_of_batch(vlm, image, {name: captions[name] for name in part}, others)
    # By the scores as they are written, so that rounding decides no tie. The names were in natural order.
    return sorted(rows, key=lambda row: -float(_number(_rank(row))))


def _rows_of_batch(vlm: VLM, image: Features, captions: Mapping[str, str], others: Features | None) -> list[Row]:
    """The rows of some encoded pictures; `others` are those that words are compared with."""
    text = vlm.encode_text(list(captions.values()))
    logits = None if vlm.scorer is None else vlm.scorer(image, text, "caption").cpu().double()
    elsewhere = None if others is None else context_cosines(others, text, GAMMA1).cpu()
    rows = []
    for i, (name, caption) in enumerate(captions.items()):
        pair = _row(image, i), _row(text, i)
        own = context_cosines(*pair, GAMMA1)[0, 0].cpu()
        # The picture itself may be among the others: it is not better than itself.
        short = -own if elsewhere is None else elsewhere[:, i].amax(0) - own
        rows.append(
            Row(
                file_name=name,
                caption=caption,
                vlms=None if logits is None else float(logits[i].sigmoid()),
                local_score=float(local_scores(*pair, GAMMA1, GAMMA2)),
                global_score=float(global_scores(*pair)),
                general=None if logits is None else float(logits[i]),
                missed=_missed(vlm, vlm.words(caption), own.tolist(), short.tolist(), others is not None),
            )
        )
    return rows


def _rank(row: Row) -> float:
    return row.global_score if row.vlms is None else row.vlms


def _number(value: float | None) -> str:
    # A score's sixth digit depends on the batch that its picture was in.
    return "" if value is None else f"{value:.4g}"


def _check_words(vlm: VLM, name: str, caption: str) -> None:
    try:
        vlm.words(caption)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _load(vlm: VLM, images: str | Path, names: Iterable[str]) -> Tensor:
    """`(B, 3, S, S)` in [-1, 1] on the matcher's device."""
    size = vlm.image_encoder.input_size
    pictures = [central_square(load_image(Path(images, name)), size) for name in names]
    return torch.stack(pictures).to(vlm.device)


def _row(features: Features, index: int) -> Features:
    return Features(*(part[index : index + 1] for part in features))


def _missed(
    vlm: VLM, words: Sequence[str], own: Sequence[float], short: Sequence[float], compared: bool
) -> tuple[tuple[str, float], ...]:
    """The words that fall short most, with their own cosines; behind the words' values may stand those of padding."""
    known = [i for i, word in enumerate(words) if word != vlm.vocabulary.unknown]
    missed = [i for i in known if short[i] > _COSINE_ROUNDING or not compared]
    return tuple((words[i], own[i]) for i in sorted(missed, key=lambda i: -short[i])[:_WORDS_MISSED])


def write_scores(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as CSV in UTF-8, with the header `COLUMNS`.

    Scores have four significant digits, an absent one is an empty field; missed words stand as "wings 0.12; black
    0.20". A kill at any moment leaves a whole file or the one before.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for row in rows:
        numbers = (row.vlms, row.local_score, row.global_score, row.general)
        table.writerow((row.file_name, row.caption, *map(_number, numbers), _sentence(row.missed)))
    # File names that are no valid UTF-8, and what JSON may hold, arrive with lone surrogates.
    write_text(text.getvalue(), Path(path), "backslashreplace")


def _sentence(missed: Sequence[tuple[str, float]]) -> str:
    return "; ".join(f"{word} {cosine:.2f}" for word, cosine in missed)


def describe(rows: Sequence[Row]) -> str:
    """Mean VLMS and its spread over ten parts (without a scorer, mean levels), then the best and the worst rows.

    Args:
        rows: at least one, best first.
    """
    ordered = sorted(rows, key=lambda row: natural_key(row.file_name))
    title = "VLMS" if rows[0].vlms is not None else "global level (the matcher has no scorer, hence no VLMS)"
    mean, spread = mean_and_spread(
        torch.tensor([_rank(row) for row in ordered], dtype=torch.float64, device="cpu"), FOLDS
    )
    enough = len(rows) >= 2 * FOLDS
    deviation = f"spread {spread:.4f} over {FOLDS} folds" if enough else f"no spread below {2 * FOLDS} pictures"
    lines = [f"{title}: mean {mean:.4f}, {deviation}, {counted(rows, 'picture')}"]
    for name, shown in (("best", rows[:_ROWS_SHOWN]), ("worst", rows[_ROWS_SHOWN:][-_ROWS_SHOWN:])):
        lines += [f"{name:5s}  {_rank(row):.3f}  {row.file_name}  {_shortened(row)}" for row in shown]
    return "\n".join(lines)


def _shortened(row: Row) -> str:
    caption = " ".join(row.caption.split())
    caption = caption if len(caption) <= _CAPTION_SHOWN else caption[: _CAPTION_SHOWN - 3] + "..."
    return f"{caption}  (missed: {_sentence(row.missed)})" if row.missed else caption
