"""Puts the loss into a clone of an original trainer: insertions of ours into files known by their blob hashes.

The patches hold no line of the originals. They are plain `git diff` output without context lines, so git can apply them
too; this command needs no git and works in a downloaded folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.files import write_bytes, writing

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel has the patches inside the package, a checkout beside it.
PATCHES = next((p for p in (_PACKAGE / "patches", _PACKAGE.parent / "patches") if p.is_dir()), _PACKAGE / "patches")


class Hunk(NamedTuple):
    """Lines to insert.

    Attributes:
        after: number of the original's line that they follow.
        anchor: the beginning of the SHA-1 of that line, stripped.
        place: the place in words.
        lines: what to insert.
    """

    after: int
    anchor: str
    place: str
    lines: tuple[str, ...]


class FilePatch(NamedTuple):
    """The insertions into one file, whose git blob hash is `old` before and `new` after."""

    name: str
    old: str
    new: str
    hunks: tuple[Hunk, ...]


class Patch(NamedTuple):
    """A patch file.

    Attributes:
        name: the repository, as on GitHub.
        commit: the commit that it is for.
        advice: what to do once it is applied, with HOST_DIR for the clone's folder.
        files: the files that it changes.
    """

    name: str
    commit: str
    advice: str
    files: tuple[FilePatch, ...]


def read_patch(path: Path) -> Patch:
    """Read one of our patch files.

    Raises:
        ValueError: it is no list of pure insertions with a header like ours.
    """
    intro, *parts = re.split(r"^diff --git .*\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    header = re.search(
        r"^Commit: (\w{40}) of https://github\.com/(\S+)$.*^Next:\n(.*)", intro, re.DOTALL | re.MULTILINE
    )
    if not header or not parts:
        raise ValueError(f"{path}: expected a patch that states its commit and what comes next")
    return Patch(header[2], header[1], header[3].rstrip(), tuple(_read_file(part, path) for part in parts))


def _read_file(text: str, path: Path) -> FilePatch:
    lines = text.splitlines()
    head = re.fullmatch(r"index (\w{40})\.\.(\w{40}) \d+\n--- a/(.+)\n\+\+\+ b/(.+)", "\n".join(lines[:3]))
    if not head or head[3] != head[4]:
        raise ValueError(f"{path}: expected the blob hashes and the names of a file, got {lines[:3]}")
    hunks, position, shift = [], 3, 0
    while position < len(lines):
        match = re.fullmatch(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@ (\w{12}) (.+)", lines[position])
        count = int(match[3] or 1) if match else 0
        added = lines[position + 1 : position + 1 + count]
        fits = match and len(added) == count and int(match[2]) == int(match[1]) + shift + 1
        if not fits or not all(line.startswith("+") for line in added):
            raise ValueError(f"{path}: expected a pure insertion, got {lines[position]}")
        hunks.append(Hunk(int(match[1]), match[4], match[5], tuple(line[1:] for line in added)))
        position, shift = position + 1 + count, shift + count
    return FilePatch(head[3], head[1], head[2], tuple(hunks))


def blob_hash(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _HostFile:
    """A file of the clone beside what the patch knows of it. `state` is "original", "patched" or "other"."""

    def __init__(self, host: Path, patch: FilePatch) -> None:
        self.patch = patch
        # What a link points to is replaced, not the link.
        self.path = (host / patch.name).resolve()
        self.data = self.path.read_bytes()
        # git for Windows checks out with CRLF and hashes without; the insertions follow the file.
        text = self.data.replace(b"\r\n", b"\n")
        self.crlf = b"\r\n" in self.data and text.replace(b"\n", b"\r\n") == self.data
        self.text = text if self.crlf else self.data
        self.state = {patch.old: "original", patch.new: "patched"}.get(blob_hash(self.text), "other")

    def changed(self) -> bytes:
        """The content after applying to an original, or reverting a patched file."""
        lines = self.text.split(b"\n")
        # From the end, so that the numbers of the lines before stay as they are. In a patched file the hunk has moved
        # down by what was inserted before it.
        for number in reversed(range(len(self.patch.hunks))):
            hunk = self.patch.hunks[number]
            if self.state == "original":
                lines[hunk.after : hunk.after] = [line.encode() for line in hunk.lines]
            else:
                first = hunk.after + sum(len(before.lines) for before in self.patch.hunks[:number])
                del lines[first : first + len(hunk.lines)]
        text = b"\n".join(lines)
        wanted = self.patch.new if self.state == "original" else self.patch.old
        if blob_hash(text) != wanted:
            raise ValueError(f"{self.path}: the result has another hash than the patch states: the patch is damaged")
        return text.replace(b"\n", b"\r\n") if self.crlf else text

    def describe(self) -> str:
        """The lines of the patch and where in this very file they go, for a reader who puts them in by hand."""
        have = [line.strip() for line in self.text.split(b"\n")]
        parts = []
        for hunk in self.patch.hunks:
            added = [line.strip().encode() for line in hunk.lines]
            found = [i for i, line in enumerate(have, 1) if hashlib.sha1(line).hexdigest().startswith(hunk.anchor)]
            there = next((i for i in range(len(have)) if have[i : i + len(added)] == added), None)
            if there is not None:
                where = f"there already, from line {there + 1}"
            elif found:
                where = f"after line {' or '.join(map(str, found))}: {have[found[0] - 1].decode(errors='replace')}"
            else:
                where = f"where the original has line {hunk.after}, which this file has not"
            parts.append("\n".join([f"{self.patch.name}, {where}", f"  ({hunk.place})", *hunk.lines]))
        return "\n\n".join(parts)


def find_patch(host: Path) -> Patch:
    """The patch whose files a clone has.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: the folder is no clone of a repository there is a patch for.
    """
    if not host.is_dir():
        raise NotADirectoryError(f"{host}: expected the folder of a clone, found none")
    patches = [read_patch(path) for path in sorted(PATCHES.glob("*.patch"))]
    for patch in patches:
        if all((host / file.name).is_file() for file in patch.files):
            return patch
    known = "; ".join(f"{patch.name} ({', '.join(file.name for file in patch.files)})" for patch in patches)
    raise ValueError(f"{host}: expected the root of a clone of one of these, with these files: {known}")


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write all the files or none: all beside their places first, then renamed; a failure puts back what was there.

    Raises:
        OSError: a file cannot be written; all are as they were.
    """
    if locked := [path for path in contents if not os.access(path, os.W_OK)]:
        raise PermissionError(f"{locked[0]}: expected a file that may be written")
    before = {path: path.read_bytes() for path in contents}
    try:
        with ExitStack() as stack:
            # What is entered last is renamed first.
            for path, data in reversed(contents.items()):
                file = stack.enter_context(writing(path))
                file.write(data)
                file.flush()
    except BaseException:
        for path, data in before.items():
            if path.read_bytes() != data:
                write_bytes(data, path)
        raise


def _fork(patch: Patch, host: Path, files: Sequence[_HostFile], task: str) -> int:
    """Print what to do by hand where a file is none that we know; nothing is touched."""
    names = [file.patch.name for file in files if file.state == "other"]
    differ = "differs" if len(names) == 1 else "differ"
    print(f"{host}: {', '.join(names)} {differ} from {patch.name} at commit {patch.commit}. Nothing was changed.")
    print(f"The lines of the patch, to {task} by hand:\n")
    print("\n\n".join(file.describe() for file in files))
    if task == "add":
        print(f"\nNext:\n{_advice(patch, host)}")
    return 1


def _advice(patch: Patch, host: Path) -> str:
    """The patch's advice for this folder, whatever its name: quoted for YAML, where it stands in quotes, or a shell."""
    yaml = re.sub("'HOST_DIR([^']*)'", lambda found: "'" + f"{host}{found[1]}".replace("'", "''") + "'", patch.advice)
    return yaml.replace("HOST_DIR", shlex.quote(str(host)))


def patch_host(host: Path, *, check: bool = False, revert: bool = False) -> int:
    """Apply the patch of a clone, say whether it can be, or take it out again. What happens is printed.

    Args:
        host: the clone's folder.
        check: only say what applying would do.
        revert: take the lines out again.

    Returns:
        Exit status: 0 if it is (or, to a check: can be) as asked for, 1 if files differ from the known ones.

    Raises:
        OSError, ValueError: no such clone, or a file cannot be written; the message names it.
    """
    host = host.resolve()
    patch = find_patch(host)
    files = [_HostFile(host, file) for file in patch.files]
    if any(file.state == "other" for file in files):
        return _fork(patch, host, files, "remove" if revert else "add")
    # A killed run leaves files that are each the one or the other: the same command completes it.
    todo = [file for file in files if file.state == ("patched" if revert else "original")]
    names = ", ".join(file.patch.name for file in todo)
    if check:
        state = f"applies to {names}" if todo else "is applied"
        print(f"{host}: the patch for {patch.name} {state}")
        return 0
    # Settings first, and last out: no moment has code that reads a setting which is not there.
    replace_files({file.path: file.changed() for file in (reversed(todo) if revert else todo)})
    if revert:
        print(f"{host}: {f'took our lines out of {names}' if todo else 'the patch is not applied; nothing to revert'}")
        return 0
    print(f"{host}: {f'patched {names}' if todo else f'the patch for {patch.name} is applied already'}")
    if any(file.crlf for file in todo):
        print("The lines of these files end in CRLF; so do the added ones.")
    print(f"Next:\n{_advice(patch, host)}")
    return 0
