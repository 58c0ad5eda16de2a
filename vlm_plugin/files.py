"""Reading and writing files: whole or not at all, and without executing code from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"


def read_checkpoint(path: str | os.PathLike, expected_format: str, newest_version: int) -> dict:
    """Read one of this package's files without executing code from it.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    return check_content(read_file(path, f"{expected_format} file"), path, expected_format, newest_version)


def read_file(path: str | os.PathLike, what: str) -> object:
    """Whatever `torch.save` wrote to a file, on the CPU, without executing code from it.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a readable {what} ({type(error).__name__})") from error


def write_file(content: object, path: str | os.PathLike) -> None:
    """`torch.save` to a file beside `path`, then rename, so that a kill at any moment leaves a whole file.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        torch.save(content, temporary)
    except RuntimeError as error:  # torch's own for a missing folder, missing rights and a full disk alike
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{path}: expected a file that can be written, on a disk with room, got {reason}") from error
    os.replace(temporary, path)


def check_content(content: object, path: str | os.PathLike, expected_format: str, newest_version: int) -> dict:
    found = content.get("format") if isinstance(content, dict) else None
    if found != expected_format:
        raise ValueError(f"{path}: expected a {expected_format} file, got {found or 'something else'}")
    version = content.get("version")
    if not isinstance(version, int):
        raise ValueError(f"{path}: expected a {expected_format} file with a version, got {version!r}")
    if version > newest_version:
        raise ValueError(f"{path}: written as version {version}, this release reads up to {newest_version}: upgrade")
    if name := not_finite(content.get("weights")):
        raise ValueError(
            f"{path}: expected finite weights, got NaN or infinity in {name}: the training that wrote it broke down"
        )
    return content


def find_file(path: str | os.PathLike) -> Path:
    """A file as it is named or, for the bare name of a packaged matcher that is no file here, the packaged one.

    Raises:
        FileNotFoundError: neither exists; the message lists what is packaged.
    """
    path = Path(path)
    if path.is_file():
        return path
    packaged = ASSETS / path
    if path.name == str(path) and packaged.is_file():
        return packaged
    known = ", ".join(sorted(p.name for p in ASSETS.glob("*.vlm.pt"))) or "none"
    raise FileNotFoundError(f"{path}: no such file (packaged matchers: {known})")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; nothing in the file is executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file holds something else.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # Damaged or foreign files fail with nearly any type of exception.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ValueError(f"{name}: expected a file of network weights, but reading it failed ({reason})") from error
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{name}: expected a state dict (parameter name -> Tensor), got {type(state).__name__}")
    return dict(state)


def not_finite(content: object, name: str = "") -> str | None:
    """The name of the first number or tensor that holds NaN or infinity; None where there is none.

    Args:
        content: numbers and tensors, in mappings of any depth; whatever else is passed over.
        name: what `content` is called; the keys that lead to a value follow, with dots between.
    """
    if isinstance(content, Mapping):
        named = (not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in content.items())
        return next(filter(None, named), None)
    if isinstance(content, Tensor):
        return None if bool(content.isfinite().all()) else name
    return name if isinstance(content, float) and not math.isfinite(content) else None


def check_writable(path: str | os.PathLike) -> None:
    """Find out before any work whether a file can be written: its folder is made, and an empty file beside it is tried.

    Raises:
        OSError: it cannot; the message names the file.
    """
    path = Path(path)
    # The name under which files here are written before they are renamed.
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("ab").close()
        temporary.unlink()
    except OSError as error:
        raise OSError(f"{path}: expected a file that can be written, got {error}") from error


def write_json(content: object, path: str | os.PathLike) -> None:
    """Indented JSON, written beside and renamed."""
    # Captions and file names may hold lone surrogates: a backslash escape is JSON's own way to write one.
    write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", Path(path), "backslashreplace")


def write_text(text: str, path: Path, errors: str = "surrogatepass") -> None:
    temporary = path.with_name(path.name + ".part")
    # File names that are no valid UTF-8 arrive with lone surrogates.
    temporary.write_bytes(text.encode("utf-8", errors))
    os.replace(temporary, path)


def digest(lines: Iterable[str]) -> str:
    """Names the text of pictures, captions or words, for telling apart what lies in places of one name."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Name the file when its content is not what was written there, whatever that leads to."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: damaged, or written by another release ({reason})") from error
