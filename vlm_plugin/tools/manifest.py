"""What two evaluations must share before their numbers may stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Entries of a manifest on which the numbers themselves depend.
MATTERS = (
    "data_digest", "split", "pictures", "image_size", "resize", "truncation", "seed", "candidates", "folds",
    "evaluator", "judge", "inception",
)  # fmt: skip
#: As well, where both have it: manifests of earlier releases do not.
MATTERS_WHERE_KNOWN = ("evaluator_reads",)


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


def _versions(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest.get("versions") or {}


def _identity(value: object) -> object:
    return value.get("fingerprint", value) if isinstance(value, Mapping) else value


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('name')} ({value.get('fingerprint')})"
    return "none" if value is None else str(value)
