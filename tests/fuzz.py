"""Damages every kind of file that is read here, and looks at what comes of it: `python tests/fuzz.py --minutes 60`.

A reader of a damaged file gives its content or one ValueError (or OSError) that names the file. It takes neither long
nor much memory, starts no process and writes nothing. Whatever else happens is a finding: the file is kept in `--keep`,
and the exit status is 1. It is run by hand, and needs a system that can fork.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import tiny
import torch
from PIL import Image

from vlm_plugin import VLM, LSTMTextEncoder, Vocabulary
from vlm_plugin.data import open_split
from vlm_plugin.data.images import load_image
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.files import read_file, write_file
from vlm_plugin.gans.find import baseline, find_networks
from vlm_plugin.gans.settings import read_config
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.matcher.damsm import damsm_text_state
from vlm_plugin.pretraining.resume import read_state
from vlm_plugin.report.read import read_run
from vlm_plugin.training.run_folder import Log
from vlm_plugin.unpickle import load_pickle

SECONDS, BYTES = 10, 2 << 30
# What a reader of files has no business with.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.mkdir")

ROWS = "".join(json.dumps({"file_name": f"{i}.png", "text": ["a", "b"]}) + "\n" for i in range(3))


class Target(NamedTuple):
    """A kind of file."""

    make: Callable[[Path], Path]
    """Writes a sound one into a folder and returns the file that is damaged."""
    read: Callable[[Path], object]
    """Reads it, from that file's path."""


def _matcher(folder: Path) -> Path:
    return Path(shutil.copy(tiny.matcher(), folder / "matcher.vlm.pt"))


def _judge(folder: Path) -> Path:
    return Path(shutil.copy(tiny.judge(), folder / "judge.pt"))


def _pickle(folder: Path) -> Path:
    path = folder / "captions.pickle"
    words = ["<end>", *(f"word{i}" for i in range(30))]
    content = [[[1, 2]], [[3]], dict(enumerate(words)), {word: i for i, word in enumerate(words)}]
    path.write_bytes(pickle.dumps([*content, np.arange(6).reshape(2, 3), np.array(["a", "b"])], protocol=2))
    return path


def _vocabulary(folder: Path) -> Path:
    path = folder / "captions.pickle"
    words = ["<end>", *(f"word{i}" for i in range(30))]
    path.write_bytes(
        pickle.dumps([[[1]], [[2]], dict(enumerate(words)), {w: i for i, w in enumerate(words)}], protocol=2)
    )
    return path


def _settings(folder: Path) -> Path:
    return tiny.config(folder / "settings.yml")


def _log(folder: Path) -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps({"step": i, "generator": 0.5, "text": "é"}) + "\n" for i in range(8)))
    return path


def _state(folder: Path) -> Path:
    with tarfile.open(ROOT / "tests" / "release-0.1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "unfinished.vlm.pt.state"


def _checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    write_file(
        {"step": 3, "trainer": {"generator": {"a": torch.arange(64.0)}, "adam": {"state": {0: {"step": 1}}}}}, path
    )
    return path


def _start(folder: Path) -> Path:
    return Path(shutil.copy(baseline("dfgan").start, folder / "birds.pt"))


def _text_encoder(folder: Path) -> Path:
    path = folder / "text_encoder.pth"
    torch.save(LSTMTextEncoder(9, 8, 4).state_dict(), path)
    return path


def _run(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with tarfile.open(ROOT / "tests" / "release-0.1.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        return folder / "dfgan" / file

    return make


def _picture(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"picture{suffix}"
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(
            path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        )
        return path

    return make


def _table(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "train").mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "train" / f"{number}.png")
        (folder / "train" / name).write_text(text, encoding="utf-8")
        return folder / "train" / name

    return make


def _coco(folder: Path) -> Path:
    (folder / "annotations").mkdir()
    (folder / "train2014").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    notes = [{"id": i, "image_id": i, "caption": f"a bird {i}"} for i in range(3)]
    for image in images:
        Image.new("RGB", (8, 8)).save(folder / "train2014" / image["file_name"])
    path = folder / "annotations" / "captions_train2014.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return path


def _split_above(levels: int) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        return [list(open_split(path.parents[levels], "train", lambda _: None))]

    return read


TARGETS: dict[str, Target] = {
    "matcher": Target(_matcher, VLM.load),
    "matcher by name": Target(_matcher, lambda path: load_matcher(str(path))),
    "judge": Target(_judge, Judge.load),
    "metadata pickle": Target(_pickle, load_pickle),
    "DAMSM vocabulary": Target(_vocabulary, Vocabulary.from_damsm),
    "settings": Target(_settings, lambda path: read_config(path, baseline("dfgan"))),
    "random pickle": Target(_pickle, load_pickle),
    "log": Target(_log, Log.read),
    "log of a resumed run": Target(_log, lambda path: Log(path, 4)),
    "a run's log": Target(_run("log.jsonl"), lambda path: read_run(path.parent, "run")),
    "state of a pretraining": Target(_state, lambda path: read_state(path.with_suffix(""))),
    "checkpoint with a checksum": Target(_checkpoint, lambda path: read_file(path, "checkpoint")),
    "exported generator": Target(_start, find_networks),
    "DAMSM text encoder": Target(_text_encoder, lambda path: damsm_text_state(path)),
    "checkpoint": Target(_run("checkpoint.pt"), lambda path: find_networks(path.parent)),
    "options": Target(_run("options.json"), lambda path: find_networks(path.parent)),
    "evaluation": Target(_run("evaluation.json"), lambda path: read_run(path.parent, "run")),
    "report's pictures": Target(_run("report.pt"), lambda path: read_run(path.parent, "run")),
    "PNG": Target(_picture(".png"), load_image),
    "JPEG": Target(_picture(".jpg"), load_image),
    "WebP": Target(_picture(".webp"), load_image),
    "metadata.csv": Target(
        _table("metadata.csv", "file_name,text\n0.png,a bird\n1.png,\"a, b\"\n2.png,é\n"), _split_above(1)
    ),
    "metadata.jsonl": Target(_table("metadata.jsonl", ROWS), _split_above(1)),
    "COCO": Target(_coco, _split_above(1)),
}  # fmt: skip


def mutants(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Damaged copies of a file, for ever: bits, cuts, holes, repetitions, foreign bytes, and numbers out of range."""
    while True:
        content = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            size = len(content)
            place, length = rng.randrange(size + 1), rng.choice((1, 2, 4, 16, 256))
            kind = rng.randrange(8)
            if kind == 0 and size:
                content[rng.randrange(size)] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del content[place:]
            elif kind == 2:
                content[place : place + length] = bytes(min(length, size - place))
            elif kind == 3:
                content[place:place] = content[place : place + length]
            elif kind == 4:
                content[place:place] = rng.randbytes(length)
            elif kind == 5:
                content[place : place + length] = b""
            elif kind == 6:
                word = rng.choice(
                    (b"null", b"[]", b"{}", b"1e999", b"-1", b"NaN", b'""', b"\xff\xfe", b"0" * 400, b"\n\n")
                )
                content[place : place + len(word)] = word
            elif kind == 7:
                number = rng.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x0FFFFFFF, 0x80000000)).to_bytes(
                    4, rng.choice(("little", "big"))
                )
                content[place : place + 4] = number
        yield bytes(content)


# Operations of pickles, for content that is no pickle's by more than a few bits.
_PIECES = (
    b"]", b"}", b")", b"(", b"\x8f", b"N", b"K\x01", b"M\x01\x02", b"J\xff\xff\xff\xff", b"X\x01\0\0\0a", b"\x8c\x01b",
    b"U\x01c", b"q\0", b"q\x01", b"h\0", b"h\x01", b"r\xff\xff\xff\x0f", b"r\0\x01\0\0", b"j\0\x01\0\0", b"\x94",
    b"2",
    b"0", b"1", b"a", b"e", b"s", b"u", b"l", b"d", b"t", b"\x85", b"\x86", b"\x87", b"\x90", b"\x91", b"R", b"b", b".",
    b"c__builtin__\nset\n", b"c__builtin__\nfrozenset\n",
    b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"Vf8\n", b"I7\n", b"L9L\n",
    b"\x8a\x02\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\0\0\0\0", b"\x95\xff\0\0\0\0\0\0\0",
)  # fmt: skip


def random_pickles(rng: random.Random) -> Iterator[bytes]:
    """Operations one after the other, some of them often, for ever."""
    while True:
        few = rng.sample(_PIECES, rng.randrange(2, 12))
        pieces = rng.choices(few if rng.random() < 0.7 else _PIECES, k=rng.choice((5, 20, 100, 2000)))
        yield b"".join(piece * rng.choice((1, 1, 1, 1, 60)) for piece in pieces) + b"."


def damaged(kind: str, data: bytes, rng: random.Random) -> Iterator[bytes]:
    """What a kind is attacked with."""
    return random_pickles(rng) if kind == "random pickle" else mutants(data, rng)


def judge_one(target: Target, path: Path) -> str | None:
    """What is wrong with how a reader takes a damaged file; None where nothing is."""
    try:
        target.read(path)
    except (ValueError, OSError) as error:
        # What a folder's readers complain of may be another file of the folder, or the folder.
        if not any(part.name in str(error) for part in (path, path.parent, path.parent.parent) if part.name):
            return f"names no file: {type(error).__name__}: {error}"
    except MemoryError:
        return "took too much memory"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    return None


def _guarded(kind: str, seed: int, count: int, report: int) -> None:
    """In a child: `count` damaged files of a kind, a line of JSON for each finding."""
    vast = resource.getrlimit(resource.RLIMIT_AS)[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, vast))
    target, rng = TARGETS[kind], random.Random(f"{kind}/{seed}")
    reading: list[bool] = []

    def watch(event: str, _: object) -> None:
        if reading and event in FORBIDDEN:
            raise AssertionError(f"{event} while a file is read")

    def late(*_: object) -> None:
        raise AssertionError(f"still reading after {SECONDS} s")

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, os.fdopen(report, "w") as lines:
        path = target.make(Path(place))
        fresh = damaged(kind, path.read_bytes(), rng)
        for number in range(count):
            path.write_bytes(next(fresh))
            print(json.dumps({"begun": number}), file=lines, flush=True)
            signal.alarm(SECONDS)
            reading.append(True)
            found = judge_one(target, path)
            reading.clear()
            signal.alarm(0)
            if found is not None:
                print(json.dumps({"found": number, "what": found}), file=lines, flush=True)


def mutant_of(kind: str, seed: int, number: int) -> bytes:
    """The damaged file that a finding names."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        fresh = damaged(kind, TARGETS[kind].make(Path(place)).read_bytes(), random.Random(f"{kind}/{seed}"))
        for _ in range(number):
            next(fresh)
        return next(fresh)


def attack(kind: str, seed: int, count: int) -> list[tuple[int, str]]:
    """Numbers of the damaged files that a reader takes wrongly, and how, out of `count` of a kind."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(read_end)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            _guarded(kind, seed, count, write_end)
            status = 0
        os._exit(status)
    os.close(write_end)
    begun, found = -1, []
    with os.fdopen(read_end) as lines:
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            begun = said.get("begun", begun)
            if "found" in said:
                found.append((said["found"], said["what"]))
    status = os.waitpid(child, 0)[1]
    if status:
        found.append((begun, f"the process ended with status {status}"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kind", choices=TARGETS, nargs="*", default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=50, help="damaged files of a kind in each round")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end, seed, tried, seen = time.monotonic() + 60 * arguments.minutes, arguments.seed, 0, {}
    while time.monotonic() < end:
        for kind in arguments.kind:
            tried += arguments.count
            for number, what in attack(kind, seed, arguments.count):
                # One file for each way to fail.
                key = (kind, "".join(c for c in what if not c.isdigit())[:60])
                if key not in seen:
                    seen[key] = what
                    arguments.keep.mkdir(exist_ok=True)
                    name = f"{kind.replace(' ', '-')}-{seed}-{number}"
                    (arguments.keep / name).write_bytes(mutant_of(kind, seed, number))
                    print(f"{kind}: {what} (kept as {arguments.keep / name})", flush=True)
        seed += 1
    print(f"{tried} damaged files of {len(arguments.kind)} kinds, {len(seen)} findings", flush=True)
    return int(bool(seen))


if __name__ == "__main__":
    sys.exit(main())
