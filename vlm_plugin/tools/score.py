"""Scores pictures that any generator drew: VLMS, the three levels, and the words that each picture misses most.

The rows come best first: by VLMS or, where the matcher has no scorer, by the global level. Take a matcher that had no
part in training the generator: to the one that trained it every picture looks better than it is.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_plugin.data.dataset import load_image
from vlm_plugin.data.records import Problem, stop
from vlm_plugin.data.text import LINE_END, PICTURE_EXTENSIONS, checked_name, read_text
from vlm_plugin.features import Features
from vlm_plugin.loss import check_scorer
from vlm_plugin.matching import context_cosines, global_scores, local_scores
from vlm_plugin.metrics import mean_and_spread
from vlm_plugin.model import VLM
from vlm_plugin.tools import training
from vlm_plugin.tools.command_line import check_outside, name_or_path, user_path
from vlm_plugin.tools.matchers import load_matcher, unknown_words
from vlm_plugin.tools.pretrain import GAMMA1, GAMMA2

COLUMNS = ("file_name", "caption", "vlms", "local", "global", "general", "missed")
FOLDS = 10
_OTHERS = 32
# With fewer pictures there are no two others to compare with.
_FEWEST = 3
_MISSED = 3
# Cosines of one picture in two batches differ by rounding, far below this.
_TIE = 1e-5
_SHOWN = 3


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
    words = {name: _words(vlm, name, captions[name]) for name in names}
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:_OTHERS].tolist()
    others = vlm.encode_image(_load(vlm, images, [names[i] for i in drawn])) if len(names) >= _FEWEST else None
    rows = []
    for start in training.progress(range(0, len(names), batch), desc="score"):
        part = names[start : start + batch]
        image = vlm.encode_image(_load(vlm, images, part))
        text = vlm.encode_text([captions[name] for name in part])
        logits = None if vlm.scorer is None else vlm.scorer(image, text, "caption").cpu().double()
        elsewhere = None if others is None else context_cosines(others, text, GAMMA1).cpu()
        for i, name in enumerate(part):
            pair = _row(image, i), _row(text, i)
            own = context_cosines(*pair, GAMMA1)[0, 0].cpu()
            short = -own
            if elsewhere is not None:
                # The picture itself may be among them: it is not better than itself.
                short = elsewhere[:, i].amax(0) - own
            rows.append(
                Row(
                    file_name=name,
                    caption=captions[name],
                    vlms=None if logits is None else float(logits[i].sigmoid()),
                    local_score=float(local_scores(*pair, GAMMA1, GAMMA2)),
                    global_score=float(global_scores(*pair)),
                    general=None if logits is None else float(logits[i]),
                    missed=_missed(vlm, words[name], own.tolist(), short.tolist(), others is not None),
                )
            )
    # By the scores as they are written, so that rounding decides no tie. The names were in natural order.
    return sorted(rows, key=lambda row: -float(_number(_rank(row))))


def _rank(row: Row) -> float:
    return row.global_score if row.vlms is None else row.vlms


def _number(value: float | None) -> str:
    # A score's sixth digit depends on the batch that its picture was in.
    return "" if value is None else f"{value:.4g}"


def _words(vlm: VLM, name: str, caption: str) -> list[str]:
    try:
        return vlm.words(caption)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _load(vlm: VLM, images: str | Path, names: Iterable[str]) -> Tensor:
    """`(B, 3, S, S)` in [-1, 1] on the matcher's device."""
    size = vlm.image_encoder.input_size
    pictures = [_central_square(load_image(Path(images, name)), size) for name in names]
    return torch.stack(pictures).to(vlm.device)


def _central_square(image: Image.Image, size: int) -> Tensor:
    """All of a square picture, the middle of any other, as `(3, size, size)` in [-1, 1]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # PIL's bilinear filter is antialiased. Only the square is resized: a strip would become a picture of gigabytes.
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(square, dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def _row(features: Features, index: int) -> Features:
    return Features(*(part[index : index + 1] for part in features))


def _missed(
    vlm: VLM, words: Sequence[str], own: Sequence[float], short: Sequence[float], compared: bool
) -> tuple[tuple[str, float], ...]:
    """The words that fall short most, with their own cosines; behind the words' values may stand those of padding."""
    known = [i for i, word in enumerate(words) if word != vlm.vocabulary.unknown and (short[i] > _TIE or not compared)]
    return tuple((words[i], own[i]) for i in sorted(known, key=lambda i: -short[i])[:_MISSED])


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names as people do: "2.png" before "10.png"."""
    # Text and digits alternate, so that a number never meets a text.
    parts = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def list_pictures(folder: str | Path) -> list[str]:
    """Paths of the pictures within a folder and its subfolders, in natural order; hidden files are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no pictures in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of pictures, found no such folder")
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (n for n in files if not n.startswith(".") and os.path.splitext(n)[1].lower() in PICTURE_EXTENSIONS)
        names += [Path(parent, name).relative_to(folder).as_posix() for name in found]
    if not names:
        raise ValueError(f"{folder}: expected pictures ({', '.join(PICTURE_EXTENSIONS)}), found none")
    return sorted(names, key=natural_key)


def read_captions(path: str | Path, images: str | Path) -> dict[str, str]:
    """Read one caption for each picture of a folder.

    What the file holds is told by its extension. ".csv" and ".tsv": a header with file_name and caption (or else text),
    and a row for each picture; ".jsonl": the same as an object a line; ".json": one object of file names and captions;
    any other: one caption a line, the i-th line for the i-th picture in natural order. Further columns do no harm, so
    what `vlm-plugin score` writes can be read again.

    Args:
        path: the captions file.
        images: the folder of the pictures.

    Returns:
        Picture's path within the folder -> caption without surrounding white space, in natural order.

    Raises:
        FileNotFoundError: the file or the folder is missing.
        ValueError: the file is not what its extension says, it names a picture twice or one outside the folder, a
            caption is empty, or a picture or a caption is without the other. The message names the file.
    """
    path = Path(path)
    listed = list_pictures(images)
    text = read_text(path, _complain)
    known, result = set(listed), {}
    for where, name, caption in _READERS.get(path.suffix.lower(), _plain)(path, text, listed):
        caption = _caption(where, caption)
        # A name that the folder has is right as it stands, whatever characters are in it.
        key = name if isinstance(name, str) and name in known else checked_name(where, name, stop)
        if key in result:
            raise ValueError(f"{where}: expected each picture once, got {key} again")
        result[key] = caption
    _check_complete(path, images, listed, result)
    return {name: result[name] for name in sorted(result, key=natural_key)}


def table_captions(path: str | Path) -> list[str]:
    """The captions of a table (`TABLES`) as `read_captions` reads it, in its order, whatever files it names.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not what its extension says, or a caption is empty. The message names the file.
    """
    path = Path(path)
    entries = _READERS[path.suffix.lower()](path, read_text(path, _complain), ())
    return [_caption(where, caption) for where, _, caption in entries]


def _caption(where: str, caption: object) -> str:
    if not isinstance(caption, str):
        raise ValueError(f"{where}: expected a caption, got {caption!r:.80} of type {type(caption).__name__}")
    if not caption.strip():
        raise ValueError(f"{where}: expected a caption, got an empty one")
    return caption.strip()


def _complain(problem: Problem) -> None:
    stop(problem)
    warnings.warn(f"{problem.where}: {problem.what}", stacklevel=3)


def _check_complete(path: Path, images: str | Path, listed: Sequence[str], captions: Mapping[str, str]) -> None:
    known = set(listed)
    problems = []
    if lost := [name for name in captions if name not in known and not Path(images, name).is_file()]:
        problems.append(f"{_count(lost, 'caption')} without a picture (the first: {lost[0]})")
    if bare := [name for name in listed if name not in captions]:
        problems.append(f"{_count(bare, 'picture')} without a caption (the first: {bare[0]})")
    if problems:
        raise ValueError(f"{path}: expected one caption for each picture in {images}, got {' and '.join(problems)}")


def _count(items: Sequence, noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


# Where it stands, file name and caption, neither of them checked.
_Entries = Iterator[tuple[str, object, object]]


def _table(path: Path, text: str, delimiter: str) -> _Entries:
    # Strict, or a stray quotation mark would swallow all rows up to the next one.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        title = "caption" if "caption" in header else "text"
        if "file_name" not in header or title not in header:
            raise ValueError(f"{path}: expected a header with file_name and caption (or text), got {header!r:.200}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{where}: expected {len(header)} fields as in the header, got {len(row)}")
            yield where, row[header.index("file_name")], row[header.index(title)]
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: expected a table, but reading it failed ({error})") from None


def _csv(path: Path, text: str, _: Sequence[str]) -> _Entries:
    return _table(path, text, ",")


def _tsv(path: Path, text: str, _: Sequence[str]) -> _Entries:
    return _table(path, text, "\t")


def _json_lines(path: Path, text: str, _: Sequence[str]) -> _Entries:
    # Not splitlines(): a caption may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        content = _parsed(where, line)
        if "file_name" not in content or not {"caption", "text"} & content.keys():
            raise ValueError(f"{where}: expected an object with file_name and caption (or text), got {line:.80}")
        yield where, content["file_name"], content.get("caption", content.get("text"))


def _json(path: Path, text: str, _: Sequence[str]) -> _Entries:
    for name, caption in _parsed(path, text).items():
        yield f"{path}, {name!r:.80}", name, caption


def _parsed(where: object, text: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{where}: expected each name once, got {key!r:.80} again")
            found[key] = value
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, but reading it failed ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, got {text.strip():.80}")
    return content


def _plain(path: Path, text: str, listed: Sequence[str]) -> _Entries:
    lines = LINE_END.split(text.rstrip())
    if len(lines) != len(listed):
        raise ValueError(
            f"{path}: expected one caption a line for each of the {_count(listed, 'picture')}, "
            f"got {_count(lines, 'line')}"
        )
    for number, (name, line) in enumerate(zip(listed, lines, strict=True), 1):
        yield f"{path}, line {number}", name, line


_READERS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _json_lines, ".json": _json}
TABLES = tuple(_READERS)


def write_scores(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as CSV in UTF-8, with the header `COLUMNS`.

    Scores have four significant digits, an absent one is an empty field; missed words stand as "wings 0.12; black
    0.20". The file is written beside and renamed, so a kill at any moment leaves a whole one or none.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for row in rows:
        numbers = (row.vlms, row.local_score, row.global_score, row.general)
        table.writerow((row.file_name, row.caption, *map(_number, numbers), _sentence(row.missed)))
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    # File names that are no valid UTF-8, and what JSON may hold, arrive with lone surrogates.
    temporary.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)


def _sentence(missed: Sequence[tuple[str, float]]) -> str:
    return "; ".join(f"{word} {cosine:.2f}" for word, cosine in missed)


def describe(rows: Sequence[Row]) -> str:
    """Mean VLMS and its spread over ten parts (without a scorer, mean levels), then the best and the worst rows.

    Args:
        rows: at least one, best first.
    """
    ordered = sorted(rows, key=lambda row: natural_key(row.file_name))
    title = "VLMS" if rows[0].vlms is not None else "global level (the matcher has no scorer, hence no VLMS)"
    mean, spread = mean_and_spread(torch.tensor([_rank(row) for row in ordered], dtype=torch.float64), FOLDS)
    enough = len(rows) >= 2 * FOLDS
    deviation = f"spread {spread:.4f} over {FOLDS} folds" if enough else f"no spread below {2 * FOLDS} pictures"
    lines = [f"{title}: mean {mean:.4f}, {deviation}, {_count(rows, 'picture')}"]
    for name, shown in (("best", rows[:_SHOWN]), ("worst", rows[_SHOWN:][-_SHOWN:])):
        lines += [f"{name:5s}  {_rank(row):.3f}  {row.file_name}  {_shortened(row)}" for row in shown]
    return "\n".join(lines)


def _shortened(row: Row) -> str:
    caption = " ".join(row.caption.split())
    caption = caption if len(caption) <= 80 else caption[:77] + "..."
    return f"{caption}  (missed: {_sentence(row.missed)})" if row.missed else caption


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin score`."""
    vlm_help = "matcher; take one that trained no generator here"
    parser.add_argument("--vlm", type=name_or_path, required=True, metavar="FILE", help=vlm_help)
    parser.add_argument(
        "--images", type=user_path, required=True, metavar="DIR", help="folder of pictures, with subfolders"
    )
    parser.add_argument(
        "--captions",
        type=user_path,
        required=True,
        metavar="FILE",
        help=".csv, .tsv, .jsonl (file_name, caption), .json ({file_name: caption}), else one a line in natural order",
    )
    parser.add_argument("--out", type=user_path, default="scores.csv", help="file to write, best picture first")
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time")
    parser.add_argument("--device", help="cuda, cuda:1, cpu")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin score`."""
    out = arguments.out
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    check_outside(out, arguments.images, "file")
    if out.resolve() == arguments.captions.resolve():
        raise ValueError(f"out: expected another file than the captions, got {out}")
    place = training.choose_device(arguments.device)
    captions = read_captions(arguments.captions, arguments.images)
    vlm = load_matcher(arguments.vlm, device=place)
    training.check_writable(out)
    rows = score(vlm, arguments.images, captions, batch=arguments.batch)
    write_scores(rows, out)
    told = unknown_words(list(captions.values()), vlm.vocabulary, arguments.vlm)
    lines = [describe(rows), *([told] if told else [])]
    lines += [f"matcher {vlm.fingerprint} ({arguments.vlm})", f"wrote {out}, best first"]
    print("\n".join(lines))
