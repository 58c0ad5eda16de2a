"""Looks at every picture and caption of a data folder and says what is there and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from vlm_plugin.data.contact_sheet import contact_sheet
from vlm_plugin.data.dataset import CaptionedImages
from vlm_plugin.data.images import MODES_WITH_ALPHA, load_image, open_picture, orientation, to_image
from vlm_plugin.data.layouts import find_layout
from vlm_plugin.data.records import BadSampleError, MissingPictureError, Problem, Record, Records, nothing_to_learn
from vlm_plugin.data.splits import list_splits, open_split
from vlm_plugin.files import open_file, write_text
from vlm_plugin.matcher.vocabulary import END, MAX_WORDS, Vocabulary, is_undivided
from vlm_plugin.terminal import check_outside

SHEET_PICTURES, SHEET_COLUMNS, SHEET_SIZE = 24, 6, 192
# Letters of a caption that the sheet shows.
SHEET_LETTERS = 200
# Findings of a kind that are printed.
PRINTED = 10
# A shorter side below this leaves the encoders little to see.
SMALL_SIDE = 32
_METADATA = "metadata and captions"
_WHAT_HAPPENS = {
    "EXIF rotation": "turned upright, as its EXIF notes say",
    "transparency": "laid over white",
    "palette": "read as RGB",
    "CMYK": "converted to RGB without a colour profile",
    "16-bit": "scaled to 8 bits",
}


class Finding(NamedTuple):
    """Something that a user of the data should know."""

    kind: str
    """What findings are grouped by."""
    where: str
    what: str
    fatal: bool
    """Training stops on it, or numbers would be wrong; else training copes, and `what` says how."""


class Split(NamedTuple):
    """What a split holds; of numbers, the least, the median and the greatest."""

    name: str
    pictures: int
    captions: int
    classes: int
    words: int
    """Distinct words."""
    lengths: tuple[float, float, float]
    """Words of a caption."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels, ordered by area; none if no picture could be read."""
    boxes: int


class Report(NamedTuple):
    """What `check` found."""

    root: Path
    layout: str
    made: bool
    """The test split is the tenth that `open_split` takes of train."""
    splits: list[Split]
    unseen: tuple[int, float] | None
    """Distinct words of test captions that no train caption has, and their share of all words there."""
    findings: list[Finding]
    shown: list[Record]
    """Pictures for `draw_sheet`, spread over the train split (else the first that has any); none if all are bad."""

    @property
    def fatal(self) -> int:
        """How many findings are fatal."""
        return sum(finding.fatal for finding in self.findings)


class _Look(NamedTuple):
    """One picture."""

    size: tuple[int, int] | None
    bytes: int
    findings: list[Finding]


def check(root: str | Path) -> Report:
    """Read every picture and caption of a data folder. Nothing is written.

    Args:
        root: the data folder.

    Returns:
        What is there and every problem.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or it has no known layout.
    """
    root = Path(root)
    layout = find_layout(root)
    findings: dict[Finding, None] = {}

    def complain(problem: Problem) -> None:
        kind = "missing files" if problem.missing else "division into splits" if problem.spoken else _METADATA
        findings[Finding(kind, problem.where, problem.what, problem.fatal)] = None

    there = {*list_splits(root), "train"}
    known = [name for name in ("train", "validation", "test") if name in there]
    names = [*known, *sorted(there.difference(known))]
    own = layout.splits(root)
    splits: list[Split] = []
    looked: dict[str, list[tuple[Record, _Look]]] = {}
    words: dict[str, dict[str, int]] = {}
    for name in names:
        if name == "train" and "train" not in own:
            complain(Problem(str(root), f"expected a train split, found {', '.join(own) or 'none'}"))
            continue
        records = open_split(root, name, complain)
        looks = _look_at_all(records, name)
        words[name], lengths, told = _captions(records)
        found = [finding for look in looks for finding in look.findings]
        findings |= dict.fromkeys(found + told + _nothing(name, records, looks))
        splits.append(_statistics(name, records, looks, words[name], lengths))
        looked[name] = list(zip(records, looks, strict=True))
    findings |= dict.fromkeys(_duplicates(looked))
    good = ([record for record, look in pictures if look.size is not None] for pictures in looked.values())
    sound = next(filter(None, good), [])
    shown = sound[:: max(len(sound) // SHEET_PICTURES, 1)][:SHEET_PICTURES]
    made = "test" in names and "test" not in own
    return Report(root, layout.looks_like, made, splits, _unseen(words), list(findings), shown)


def check_and_write(root: Path, out: Path | None = None) -> Report:
    """Check a data folder, print what was found, and write a contact sheet and the list of every problem.

    Args:
        root: the data folder.
        out: the contact sheet; the list lies beside it, with .txt behind its name. When left out it is
            data-check-NAME.png in the working folder, or beside the data where that lies in it.

    Returns:
        What was found.

    Raises:
        FileNotFoundError, ValueError: see `check`; or `out` is no .png, or lies among the data.
    """
    sheet = _sheet_file(root, out)
    report = check(root)
    # First of all: a sheet that cannot be written must not cost what was found.
    print(render(report))
    if report.findings:
        # Its name holds all of the one that the user gave: whoever has an overview.txt did not name that.
        listing = sheet.with_name(f"{sheet.name}.txt")
        write_text(render(report, most=None) + "\n", listing, errors="replace")
        print(f"every problem: {listing}")
    if report.shown:
        draw_sheet(report, sheet)
        print(f"what the pictures look like to training: {sheet}")
    return report


def draw_sheet(report: Report, path: str | Path) -> None:
    """Write a PNG of captioned pictures as training sees them.

    Args:
        report: of `check`, with pictures to show.
        path: the file; keep it out of the data folder, whose readers would take it for one of the pictures.
    """
    images = CaptionedImages(report.shown, SHEET_SIZE, train=False)
    pictures = [to_image(images[number].image) for number in range(len(report.shown))]
    contact_sheet(
        pictures, [record.captions[0][:SHEET_LETTERS] for record in report.shown], SHEET_COLUMNS, path, SHEET_SIZE
    )


def render(report: Report, most: int | None = PRINTED) -> str:
    """The report as text.

    Args:
        report: of `check`.
        most: findings of a kind that are listed; None for all.
    """
    made = "; the test split is made of a tenth of train, chosen by a hash of the names" if report.made else ""
    lines = [f"{report.root}: {report.layout}{made}", "", _table(report.splits)]
    if report.unseen is not None:
        lines += ["", f"words of test that train never says: {report.unseen[0]} ({report.unseen[1]:.1%} of all words)"]
    kinds: dict[tuple[bool, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        kinds[not finding.fatal, finding.kind].append(finding)
    for (harmless, kind), group in sorted(kinds.items()):
        lines += ["", f"{'note' if harmless else 'FATAL'}: {kind} ({len(group)})"]
        # From the data folder on: whole paths would push what matters out of sight.
        places = [finding.where.removeprefix(f"{report.root}{os.sep}") for finding in group[:most]]
        lines += [f"  {place}: {finding.what}" for place, finding in zip(places, group, strict=False)]
        if most is not None and len(group) > most:
            lines.append(f"  and {len(group) - most} more")
    notes = len(report.findings) - report.fatal
    return "\n".join(
        [*lines, "", f"{report.fatal} fatal problems, {notes} notes" if report.findings else "no problems"]
    )


def _sheet_file(root: Path, out: Path | None) -> Path:
    """Where the contact sheet goes, and the list of problems beside it.

    Never into the data folder: a .png is a picture there, and a .txt holds captions.
    """
    # Not resolve(), which raises at a link that leads around.
    folder = Path(os.path.realpath(root))
    sheet = Path(f"data-check-{folder.name}.png") if out is None else out
    if out is None and folder in Path(os.path.realpath(sheet)).parents:
        return folder.parent / sheet
    if sheet.suffix.lower() != ".png":
        raise ValueError(f"--out {sheet}: expected the name of a .png file")
    check_outside(sheet, root, "file")
    return sheet


def _look_at_all(records: Records, name: str) -> list[_Look]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(_look_at, records), total=len(records), desc=name, leave=False, dynamic_ncols=True)
        return list(bar)


def _look_at(record: Record) -> _Look:
    """Decode a picture as training does, and note what training does to it."""
    path, box = record.image, record.box
    try:
        load_image(path, box)
    except BadSampleError as error:
        kind = "missing files" if isinstance(error, MissingPictureError) else _kind(path)
        return _Look(None, 0, [Finding(kind, str(path), str(error).removeprefix(f"{path}: "), True)])
    with open_file(path) as file, open_picture(file) as image:
        width, height = image.size
        notes = _treatment(image)
        if orientation(image) >= 5:  # a quarter turn
            width, height = height, width
    found = [Finding(kind, str(path), _WHAT_HAPPENS[kind], False) for kind in notes]
    if min(width, height) < SMALL_SIDE:
        found.append(Finding("very small pictures", str(path), f"{width} x {height} pixels, enlarged", False))
    if box is not None and not (box[0] >= 0 and box[1] >= 0 and box[0] + box[2] <= width and box[1] + box[3] <= height):
        what = f"the box {box} reaches beyond the {width} x {height} pixels; it is cut off there"
        found.append(Finding("boxes that reach outside", str(path), what, False))
    return _Look((width, height), path.stat().st_size, found)


def _treatment(image: Image.Image) -> list[str]:
    """What training does to a picture: kinds of `_WHAT_HAPPENS`."""
    applies = {
        "EXIF rotation": orientation(image) > 1,
        "transparency": "transparency" in image.info or image.mode in MODES_WITH_ALPHA,
        "palette": image.mode in ("P", "PA"),
        "CMYK": image.mode == "CMYK",
        "16-bit": image.mode.startswith("I"),
    }
    return [kind for kind, does in applies.items() if does]


def _kind(path: Path) -> str:
    """Whether the picture or its box is to blame."""
    try:
        load_image(path)
    except BadSampleError:
        return "unreadable pictures"
    return "boxes outside the picture"


def _captions(records: Records) -> tuple[dict[str, int], list[int], list[Finding]]:
    """Words with how often they occur, lengths of the captions, and what is wrong with these."""
    tokenizer = Vocabulary([END], unknown=None)
    counts: dict[str, int] = defaultdict(int)
    lengths: list[int] = []
    found: list[Finding] = []
    long = undivided = 0
    for record in records:
        own = [tokenizer.tokenize(caption) for caption in record.captions]
        empty = [caption for caption, tokens in zip(record.captions, own, strict=True) if not tokens]
        for caption in empty:
            what = f"expected a caption with a word, got {caption!r:.80}"
            rest = "" if len(empty) == len(own) else "; the picture's others are used"
            found.append(Finding("captions without a word", record.key, what + rest, not rest))
        for tokens in own:
            lengths.append(len(tokens))
            long += len(tokens) > MAX_WORDS
            undivided += any(map(is_undivided, tokens))
            for token in tokens:
                counts[token] += 1
    if long:
        what = f"{long} of {len(lengths)} captions have more than {MAX_WORDS} words; of these that many are kept"
        found.append(Finding("long captions", "captions", what, False))
    if 2 * undivided > len(lengths):
        what = (
            f"{undivided} of {len(lengths)} captions have a phrase that is read as one word, for their script has no "
            "blanks between words: put blanks between them, or little can be learned"
        )
        found.append(Finding("captions that are not divided", "captions", what, False))
    return dict(counts), lengths, found


def _nothing(name: str, records: Records, looks: Sequence[_Look]) -> list[Finding]:
    """That a split has no wrong captions: in train nothing can be learned, elsewhere nothing measured."""
    usable = (record for record, look in zip(records, looks, strict=True) if look.size is not None)
    reason = nothing_to_learn(usable) if records else None  # that a split is empty is said already
    if reason is None:
        return []
    what = "no matcher can be learned" if name == "train" else "no matcher can be chosen by it or measured on it"
    return [Finding("nothing to tell apart", f"split {name}", f"{reason}: {what}", name == "train")]


def _statistics(
    name: str, records: Records, looks: Sequence[_Look], words: dict[str, int], lengths: list[int]
) -> Split:
    sizes = sorted((look.size for look in looks if look.size is not None), key=lambda size: size[0] * size[1])
    classes = {record.class_id for record in records} - {None}
    boxes = sum(record.box is not None for record in records)
    spread = (min(lengths), statistics.median(lengths), max(lengths)) if lengths else (0, 0, 0)
    shown = (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ()
    return Split(name, len(records), len(lengths), len(classes), len(words), spread, shown, boxes)


def _unseen(words: dict[str, dict[str, int]]) -> tuple[int, float] | None:
    if not words.get("train") or not words.get("test"):
        return None
    new = {word: count for word, count in words["test"].items() if word not in words["train"]}
    return len(new), sum(new.values()) / sum(words["test"].values())


def _duplicates(looked: Mapping[str, Sequence[tuple[Record, _Look]]]) -> list[Finding]:
    """Pictures whose files are equal, within a split or in two."""
    sized: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, pictures in looked.items():
        for record, look in pictures:
            if look.bytes:
                sized[look.bytes].append((split, record.image))
    found = []
    for same_size in sized.values():
        # Only files of one size can be equal, and only those are read again.
        for (first_split, first), *others in _equal(same_size) if len(same_size) > 1 else ():
            for split, path in others:
                if path == first:
                    continue
                if split == first_split:
                    kind, end = "pictures twice in a split", ""
                else:
                    kind = "pictures in two splits"
                    end = f": {first_split} and {split} share it, so numbers on {split} mislead"
                found.append(Finding(kind, str(path), f"the same file as {first}{end}", split != first_split))
    return found


def _equal(files: Sequence[tuple[str, Path]]) -> Iterable[list[tuple[str, Path]]]:
    """Files in groups of equal content."""
    groups: dict[bytes, list[tuple[str, Path]]] = defaultdict(list)
    for split, path in files:
        groups[hashlib.sha256(path.read_bytes()).digest()].append((split, path))
    return groups.values()


def _table(splits: Sequence[Split]) -> str:
    head = ("split", "pictures", "captions", "classes", "boxes", "words", "words a caption", "width x height")
    rows = [_row(split) for split in splits]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows]]
    return "\n".join([*lines, "(least / median / greatest)"])


def _row(split: Split) -> tuple[str, ...]:
    lengths = " / ".join(f"{length:g}" for length in split.lengths)
    sizes = " / ".join(f"{width}x{height}" for width, height in split.sizes)
    counts = (split.pictures, split.captions, split.classes or "none", split.boxes or "none", split.words)
    return (split.name, *map(str, counts), lengths, sizes or "none readable")
