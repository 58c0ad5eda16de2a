"""The one room where files are read and written: whole or not at all, and without executing code from them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import signal
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vlm_plugin.foreign import foreign, without_wrappers

# torch is imported where it is needed: a command that writes text alone starts without it.
if TYPE_CHECKING:
    from torch import Tensor

# In the files of `write_file`: a checksum of all that stands beside it.
_CHECKSUM = "vlm_plugin.checksum"
ASSETS = Path(__file__).parent / "assets"
# Letters of a file's own name that its temporary one shows: with what is added it is a name that every system takes.
_NAME_SHOWN = 40


# ----------------------------------------------------------------------------------------------------------- writing


class NotWrittenError(OSError):
    """A file cannot be written; the message names it."""


@contextlib.contextmanager
def writing(path: str | os.PathLike, before: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A binary file to write to, which takes the place of `path` when the block ends.

    Whoever reads `path` sees what was there before or all that is written, also after a kill and where several
    processes write it at once: each writes a file of its own, hidden and called ".part", in the same folder. The
    permissions of what was there stay.

    Args:
        path: the file.
        before: called with it when all is written and lies on the disk, before it is replaced.

    Raises:
        NotWrittenError: the system refuses, also what the block writes. After this and whatever else the block raises,
            `path` is as it was and nothing lies beside it.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        if before is not None:
            before(path)
        os.replace(temporary, path)
        _sync(path.parent)
    except NotWrittenError:  # another file's, where several are written at once
        raise
    except OSError as error:
        reason = _reason(error, temporary, path)
        raise NotWrittenError(
            f"{path}: expected a file that can be written, on a disk with room, got {reason}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends; `path` may be an empty folder.

    Raises:
        OSError: a folder cannot be made, or `path` is no empty folder by then. After this and whatever else the block
            raises, `path` is as it was and nothing lies beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    with tidy_end():
        try:
            temporary.mkdir()
            yield temporary
            if path.is_dir():
                path.rmdir()
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def tidy_end() -> Iterator[None]:
    """Have SIGTERM end the process as an error does: what is half written is cleaned up, and the exit status is 143.

    Nothing changes where somebody handles the signal already, or outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # launchers send it to a group, and then to each process of it
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_writable(path: str | os.PathLike) -> None:
    """Find out before any work whether a file can be written: its folder is made, and an empty file beside it is tried.

    Raises:
        NotWrittenError: it cannot.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a name that is too long comes to light here as well
            if stat.S_ISDIR(path.stat().st_mode):
                raise IsADirectoryError("a folder")
        temporary.open("xb").close()
        temporary.unlink()
    except OSError as error:
        reason = _reason(error, temporary, path)
        raise NotWrittenError(f"{path}: expected a file that can be written, got {reason}") from error


def write_bytes(content: bytes, path: str | os.PathLike) -> None:
    """Write a file as `writing` does; errors as its."""
    with writing(path) as file:
        file.write(content)


def write_text(text: str, path: str | os.PathLike, errors: str = "surrogatepass") -> None:
    """Write UTF-8, line ends as they are; errors as those of `writing`.

    Args:
        text: the content.
        path: the file.
        errors: what becomes of lone surrogates, as file names have them that are no valid UTF-8.
    """
    write_bytes(text.encode("utf-8", errors), path)


def write_json(content: object, path: str | os.PathLike) -> None:
    """Write indented JSON; errors as those of `writing`."""
    # Captions and file names may hold lone surrogates: a backslash escape is JSON's own way to write one.
    write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", path, "backslashreplace")


def write_file(content: object, path: str | os.PathLike) -> None:
    """`torch.save` to a file that `read_file` and `read_checkpoint` read; errors as those of `writing`.

    A dict gets a checksum of its content as one more entry, which `read_file` looks at and takes out again.
    """
    _write_file(content, writing(path))


def write_next(content: object, path: str | os.PathLike) -> None:
    """`write_file` that keeps the file before it as `previous`; one of both is whole at any moment.

    The one before is not copied: it gets a second name, or the name itself where the system gives no second one.
    """
    _write_file(content, writing(path, _keep_previous))


def previous(path: str | os.PathLike) -> Path:
    """Where `write_next` keeps the file before: `checkpoint.previous.pt` beside `checkpoint.pt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def damaged(path: str | os.PathLike) -> Path:
    """Where `set_aside` puts a file: `checkpoint.damaged.pt` beside `checkpoint.pt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.damaged{path.suffix}")


def set_aside(path: str | os.PathLike) -> None:
    """Rename a damaged file to `damaged`: `write_next` would put it in the place of `previous`, which is whole."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, damaged(path))


def _write_file(content: object, place: contextlib.AbstractContextManager[BinaryIO]) -> None:
    import torch

    if isinstance(content, dict):
        content = {**content, _CHECKSUM: _checksum(content)}
    with place as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own for a full disk
            raise OSError(str(error)) from error


def _keep_previous(path: Path) -> None:
    if not path.is_file():
        return
    second = _beside(path)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links
        os.replace(path, previous(path))
        return
    try:
        os.replace(second, previous(path))
    finally:
        with contextlib.suppress(OSError):  # two names of one file stay two names
            second.unlink()


def _checksum(content: object) -> str:
    """Eight hexadecimal digits that change with any bit of what is in a file, whatever its tensors' layouts are."""
    import torch

    total = 0

    def add(data: object) -> None:
        nonlocal total
        total = zlib.crc32(data, total)

    def walk(value: object) -> None:
        if torch.is_tensor(value):
            value = value.detach().cpu().contiguous()
            add(f"{value.dtype} {tuple(value.shape)} ".encode())
            if value.numel():
                add(value.reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, (Mapping, list, tuple)):
            add(f"{'{' if isinstance(value, Mapping) else '['}{len(value)} ".encode())
            for part in value.items() if isinstance(value, Mapping) else value:
                for item in part if isinstance(value, Mapping) else (part,):
                    walk(item)
        else:
            add(f"{type(value).__name__} {value!r} ".encode("utf-8", "backslashreplace"))

    walk(content)
    return f"{total:08x}"


def _beside(path: Path) -> Path:
    """A name in the same folder that no other writer has, and that no reader takes for data if a kill leaves it."""
    return path.with_name(f".{path.name[:_NAME_SHOWN]}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _reason(error: OSError, temporary: Path, path: Path) -> str:
    """The error in one short line, about the file that was asked for."""
    return " ".join(str(error).replace(str(temporary), str(path)).split())[:300]


def _sync(folder: Path) -> None:
    """Have the names in a folder written to disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows, and some file systems
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ----------------------------------------------------------------------------------------------------------- reading


class NotAFileError(OSError):
    """Something else than a file has the name; `strerror` says what, as in "a pipe"."""

    def __str__(self) -> str:
        """One sentence that names it."""
        return f"{self.filename}: expected a file, found {self.strerror}"


class _LeadsNowhereError(NotAFileError, FileNotFoundError):
    """A link to what is not there."""


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file, to read bytes: this never waits, as opening a pipe does, and no device is touched.

    Raises:
        FileNotFoundError: there is no such file, or a link leads nowhere.
        NotAFileError: it is a folder, a pipe, a socket, a device, or a link that leads back to itself.
        OSError: the system refuses.
    """
    _check_regular(path, _status(path))
    return open(path, "rb", opener=_without_waiting)


def refusal(error: OSError) -> str:
    """What follows "expected a picture, " where `open_file`, or reading what it opened, raised an error."""
    if isinstance(error, NotAFileError):
        return f"found {error.strerror}"
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "found no such file"
    return f"but reading it failed ({error.strerror or error})"


def lies_at(path: str | os.PathLike) -> bool:
    """Whether something has a file's name that is no folder; `open_file` may refuse it."""
    return os.path.lexists(path) and not os.path.isdir(path)


def check_folder(path: str | os.PathLike, expected: str) -> None:
    """Refuse what is no folder.

    Args:
        path: the folder.
        expected: what it should be, for the message.

    Raises:
        FileNotFoundError: it is none; the message says "no such folder", or what kind of link it is.
    """
    try:
        there, what = stat.S_ISDIR(_status(path).st_mode), "no such folder"
    except NotAFileError as error:
        there, what = False, error.strerror
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        there, what = False, "no such folder" if missing else f"none that can be opened ({error.strerror})"
    if not there:
        raise FileNotFoundError(f"{path}: expected {expected}, found {what}")


def _status(path: str | os.PathLike) -> os.stat_result:
    """The status of what a path leads to; a link that leads nowhere, or around, is said to be one."""
    try:
        return os.stat(path)
    except OSError as error:
        name = os.fspath(path)
        if error.errno == errno.ELOOP:
            raise NotAFileError(error.errno, "a link that leads back to itself", name) from None
        if error.errno == errno.ENOENT and os.path.islink(name):
            what = f"a link to {os.readlink(name)}, which is not there"
            raise _LeadsNowhereError(error.errno, what, name) from None
        raise


def _check_regular(path: str | os.PathLike, status: os.stat_result) -> None:
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise NotAFileError(errno.EINVAL, kinds.get(stat.S_IFMT(mode), "a device"), os.fspath(path))


def _without_waiting(path: str, flags: int) -> int:
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none
    try:
        _check_regular(path, os.fstat(handle))  # something else may lie there by now
    except NotAFileError:
        os.close(handle)
        raise
    return handle


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
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        # Files of earlier releases have none. torch itself does not look at those of the archive.
        told = content.pop(_CHECKSUM, None) if isinstance(content, dict) else None
        right = told is None or told == _checksum(content)
    except Exception as error:
        found = foreign(path)
        reason = f", but {found}" if found else f" ({type(error).__name__})"
        raise ValueError(f"{path}: not a readable {what}{reason}") from error
    if not right:
        raise ValueError(f"{path}: expected the content that was written there, got another: the file is damaged")
    return content


def check_content(content: object, path: str | os.PathLike, expected_format: str, newest_version: int) -> dict:
    """What `read_checkpoint` returns, out of a file that is read already.

    Args:
        content: what the file holds.
        path: the file, for messages.
        expected_format: what its "format" should say.
        newest_version: the newest "version" that this release reads.

    Raises:
        ValueError: another format, a version that is missing or newer, or weights that are not finite.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, str) or found != expected_format:
        found = found if isinstance(found, str) and found else "something else"
        raise ValueError(f"{path}: expected a {expected_format} file, got {found:.100}")
    version = content.get("version")
    if not isinstance(version, int):
        raise ValueError(f"{path}: expected a {expected_format} file with a version, got {type(version).__name__}")
    if version > newest_version:
        raise ValueError(f"{path}: written as version {version}, this release reads up to {newest_version}: upgrade")
    with whole(path):
        name = not_finite(content.get("weights"))
    if name:
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
    """The state dict in a file, on the CPU, without the prefixes of wrappers; nothing in the file is executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file holds something else.
    """
    import torch

    name = os.fspath(path)
    with open_file(name) as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # Damaged or foreign files fail with nearly any type of exception.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            got = f"got {found}" if (found := foreign(name)) else f"but reading it failed ({reason})"
            raise ValueError(f"{name}: expected a file of network weights, {got}") from error
    if not isinstance(state, Mapping) or not state or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{name}: expected a state dict (parameter name -> Tensor), got {type(state).__name__}")
    return without_wrappers(state)


def not_finite(content: object, name: str = "") -> str | None:
    """The name of the first number or tensor that holds NaN or infinity; None where there is none.

    Args:
        content: numbers and tensors, in mappings of any depth; whatever else is passed over.
        name: what `content` is called; the keys that lead to a value follow, with dots between.
    """
    import torch

    if isinstance(content, Mapping):
        named = (not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in content.items())
        return next(filter(None, named), None)
    if torch.is_tensor(content):
        return None if bool(content.isfinite().all()) else name
    return name if isinstance(content, float) and not math.isfinite(content) else None


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[None]:
    """Name the file when its content is not what was written there, whatever that leads to.

    Raises:
        ValueError: in place of what the block raises, unless that names the file or its folder, or is the system's.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # A GPU without room is a RuntimeError, told by its name: not everything that reads files loads torch.
        named = isinstance(error, ValueError) and any(n in str(error) for n in (str(path), f"{Path(path).parent}:"))
        if named or type(error).__name__ == "OutOfMemoryError":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{path}: damaged, or written by another release ({reason})") from error


def misfits(expected: Mapping[str, Tensor], state: object) -> list[str]:
    """What a state dict has wrong, in words: names, shapes, and weights that are no fractions.

    Args:
        expected: the network's own.
        state: what a file holds. A BatchNorm's counter may be missing, as torch itself allows: files from before torch
            0.4.1 have none.
    """
    import torch

    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return ["something else than a dict of tensors"]
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    for name, value in expected.items():
        found = state.get(name, value)
        if found.shape != value.shape:
            problems.append(f"{name} has shape {tuple(found.shape)} instead of {tuple(value.shape)}")
        elif found.layout != torch.strided or (value.is_floating_point() and not found.is_floating_point()):
            problems.append(f"{name} is of type {found.dtype} instead of {value.dtype}")
    return problems


def first_few(problems: Sequence[str]) -> str:
    """The first three, and how many there are more."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


# ------------------------------------------------------------------------------------------------------------- names


def digest(lines: Iterable[str]) -> str:
    """Names the text of pictures, captions or words, for telling apart what lies in places of one name."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def caption_id(caption: str) -> int:
    """An id of a caption's text, 0 to 2^63 - 1: the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
