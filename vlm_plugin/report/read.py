"""What an evaluated run left in its folder, and whether two of them may be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlm_plugin.files import read_file
from vlm_plugin.training.run_folder import Log

#: Entries of a manifest on which the numbers themselves depend.
MATTERS = (
    "data_digest", "split", "pictures", "image_size", "resize", "truncation", "seed", "candidates", "folds",
    "evaluator", "judge", "inception",
)  # fmt: skip
#: As well, where both have it: manifests of earlier releases do not.
MATTERS_WHERE_KNOWN = ("evaluator_reads",)
#: What stands where a run has no value.
NO_VALUE = "\N{EN DASH}"


class Run(NamedTuple):
    """What a run's folder holds; None for a file that is not there."""

    name: str
    """Told from the other runs' names."""
    folder: Path
    evaluation: dict[str, Any]
    log: list[dict[str, Any]] | None
    options: dict[str, Any] | None
    pictures: dict[str, Any] | None


def read_run(folder: Path, name: str) -> Run:
    """What a run's folder holds.

    Raises:
        FileNotFoundError: no evaluation.json.
        ValueError: a damaged file, named by the message.
    """
    path = folder / "evaluation.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a run with evaluation.json, got none: run vlm-plugin evaluate first"
        )
    evaluation, log, options, pictures = _read_json(path), None, None, None
    if missing := [n for n in ("manifest", "columns", "rows") if not evaluation.get(n)]:
        raise ValueError(f"{path}: expected manifest, columns and rows, got no {' and no '.join(missing)}")
    for column in evaluation["columns"].values():
        _check_keys(path, "column", column, ("title", "better"))
    for row in evaluation["rows"]:
        _check_keys(path, "row", row, ("name", "values"))
    if (folder / "log.jsonl").is_file():
        log = [row for row in Log.read(folder / "log.jsonl") if isinstance(row, dict) and is_number(row.get("step"))]
    if (folder / "options.json").is_file():
        options = _read_json(folder / "options.json")
    if (folder / "report.pt").is_file():
        pictures = read_file(folder / "report.pt", "file of vlm-plugin evaluate")
        _check_pictures(pictures, folder / "report.pt")
    return Run(name, folder, evaluation, log, options, pictures)


def _check_keys(path: Path, what: str, content: Mapping[str, Any], keys: Sequence[str]) -> None:
    if not all(key in content for key in keys):
        raise ValueError(f"{path}: expected every {what} with {' and '.join(keys)}, got {content}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _check_pictures(content: object, path: Path) -> None:
    """Before anything is drawn: each part as long as what stands beside it, pictures of bytes."""
    try:
        captions = content.get("captions", [])
        for name, pictures in content.get("pictures", {}).items():
            _expect(len(pictures) == len(captions) and pictures.ndim == 5, path, f"pictures.{name}", pictures.shape)
            _expect(pictures.dtype == torch.uint8, path, f"pictures.{name}", pictures.dtype)
        for name in ("best", "worst"):
            part = content.get(name) or {"captions": [], "pictures": [], "scores": []}
            lengths = [len(part[key]) for key in ("captions", "pictures", "scores")]
            _expect(len(set(lengths)) == 1, path, name, lengths)
        for number, part in enumerate(content.get("attention") or []):
            lengths = [len(part[key]) for key in ("words", "real_maps", "fake_maps")]
            _expect(len(set(lengths)) == 1, path, f"attention {number}", lengths)
            shapes = [tuple(part[key].shape) for key in ("real", "fake")]
            _expect(all(len(shape) == 3 for shape in shapes), path, f"attention {number}", shapes)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected what vlm-plugin evaluate writes, got something else ({error!r})") from error


def _expect(right: bool, path: Path, part: str, got: object) -> None:
    if not right:
        raise ValueError(f"{path}: {part}: expected parts that fit together, uint8 for pictures, got {got}")


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def check_comparable(first: Run, other: Run) -> None:
    """Refuse runs that were evaluated in different ways.

    Raises:
        ValueError: the message names both folders and each difference.
    """
    if differences := comparable(first.evaluation["manifest"], other.evaluation["manifest"]):
        raise ValueError(
            f"{other.folder}: expected the same evaluation as {first.folder}, got differences: {'; '.join(differences)}"
        )


def is_number(value: object) -> bool:
    """A number of JSON, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def counted(value: object) -> str:
    """A count, or words in its place, to stand before what is counted."""
    return f"{value:,}" if is_number(value) and math.isfinite(value) else "an unknown number of"


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Differences that forbid a comparison.

    Args:
        a: the manifest of one evaluation.json.
        b: that of another.

    Returns:
        "NAME: VALUE and VALUE" for each, in the order of `MATTERS`; empty where the numbers may be compared. An entry
        that is missing is the same as null, and a network is its fingerprint, whatever its file is called.
    """
    known = [name for name in MATTERS_WHERE_KNOWN if name in a and name in b]
    pairs = ((name, a.get(name), b.get(name)) for name in (*MATTERS, *known))
    return [f"{name}: {_shown(x)} and {_shown(y)}" for name, x, y in pairs if _identity(x) != _identity(y)]


def warnings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Differences that leave a comparison possible but belong beside it: averaged weights or not, torch's version.

    Returns:
        As `comparable`.
    """
    pairs = [("ema", a.get("ema"), b.get("ema")), ("torch", _versions(a).get("torch"), _versions(b).get("torch"))]
    return [f"{name}: {_shown(x)} and {_shown(y)}" for name, x, y in pairs if x != y]


def asides(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Differences that do not matter: the device, and versions other than torch's.

    Returns:
        As `comparable`.
    """
    ours, theirs = _versions(a), _versions(b)
    names = [name for name in dict.fromkeys([*ours, *theirs]) if name != "torch"]
    pairs = [("device", a.get("device"), b.get("device")), *((n, ours.get(n), theirs.get(n)) for n in names)]
    return [f"{name}: {_shown(x)} and {_shown(y)}" for name, x, y in pairs if x != y]


def differences(runs: Sequence[Run], between: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]) -> list[str]:
    """A sentence for each difference of another run from the first; `between` is `warnings` or `asides`."""
    first, *others = runs
    return [
        f"{first.name} and {other.name} differ in {difference}"
        for other in others
        for difference in between(first.evaluation["manifest"], other.evaluation["manifest"])
    ]


def _versions(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest.get("versions") or {}


def _identity(value: object) -> object:
    return value.get("fingerprint", value) if isinstance(value, Mapping) else value


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('name')} ({value.get('fingerprint')})"
    return "none" if value is None else str(value)
