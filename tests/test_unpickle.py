"""load_pickle reads every ordinary metadata pickle and runs nothing from any other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from vlm_plugin.unpickle import load_pickle


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def write(tmp_path: Path, content: object, protocol: int = 2) -> Path:
    path = tmp_path / "file.pickle"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if type(a) is not type(b) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        return same(a.tolist(), b.tolist())
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


PLAIN = {
    "list": [1, 2.5, True, None, 10**30, -7, 1 + 2j],
    "tuple": ("a", ("bird", "é"), b"", b"\x00\xff", b"xy"),
    "set": {1, 2, 3},
    "frozen": frozenset({"x"}),
    3: {"nested": [[], {}, ()]},
}
NUMPY = {
    "float": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False]),
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["ab", "é"]),
    "empty": np.zeros((0, 3)),
    "zero-dim": np.array(3.5),
    "scalars": [np.int64(-3), np.float32(0.25), np.bool_(True), np.str_("word")],
    "objects": np.array([{"a": 1}, None, "x", [np.arange(2)]], dtype=object),
    "in a tuple": (np.arange(3), [np.arange(2)]),
    "dtype": np.dtype("<f4"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("content", [PLAIN, NUMPY], ids=["plain", "numpy"])
def test_round_trip(tmp_path, content, protocol):
    assert same(load_pickle(write(tmp_path, content, protocol)), content)


def test_array_is_writable_and_shared_references_stay_shared(tmp_path):
    array = np.arange(4)
    first, second = load_pickle(write(tmp_path, [array, array]))
    first[0] = 9
    assert first is second
    assert type(first) is np.ndarray


def test_container_of_itself(tmp_path):
    content: list = [np.arange(2)]
    content.append(content)
    loaded = load_pickle(write(tmp_path, content))
    assert loaded[1] is loaded
    assert same(loaded[0], np.arange(2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: np.array([1, c], dtype=object)], ids=["bare", "object array"])
def test_calls_are_refused_and_not_made(tmp_path, wrap, protocol):
    marker = tmp_path / "executed"
    for call, name in [
        (Call(os.system, f"touch {marker}"), f"{os.name}.system"),
        (Call(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (Call(getattr, [], "append"), "getattr"),
        (Call(np.load, str(marker)), "load"),
    ]:
        path = write(tmp_path, wrap(call), protocol)
        with pytest.raises(ValueError, match="refused to load") as error:
            load_pickle(path)
        assert str(path) in str(error.value)
        assert name in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\ndtype\n.",  # a bare type
        b"cnumpy\nndarray\n.",
        b"(lp0\ncnumpy\ndtype\na.",  # the same inside a list
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",  # any other codec
        b"cnumpy\ndtype\n}Vkey\nI1\nsb.",  # a state set on a builder
        b"c_codecs\nencode\n(N}V__name__\nVx\nstb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n(I0\ntVb\ntR.",  # another array type
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR.",  # an array without content
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\nI0\nI1\ntRI1\ntR.",  # an integer as an object pointer
        b"cnumpy\ndtype\n(VV8\nI0\nI1\ntR.",  # raw records
        b"(lp0\nc_codecs\nencode\na.",
        b"cos.path\nos\n.",
    ],
)
def test_crafted_content_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"file.pickle: refused to load"):
        load_pickle(write(tmp_path, content))


def array_pickle(state: bytes) -> bytes:
    return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR" + state + b"b."


@pytest.mark.parametrize(
    "state",
    [
        b"(I1\n(I9\ntcnumpy\ndtype\n(Vf8\nI0\nI1\ntRI00\nVabcdefgh\nt",  # more elements than bytes
        b"(I1\n(I-1\ntcnumpy\ndtype\n(Vf8\nI0\nI1\ntRI00\nVabcdefgh\nt",
        b"(I1\n(I1\ntcnumpy\ndtype\n(VO8\nI0\nI1\ntRI00\nVabcdefgh\nt",  # bytes as object pointers
        b"(I1\n(I1\ntVf8\nI00\nVabcdefgh\nt",  # a dtype that is none
        b"(I1\n(I1\ntcnumpy\ndtype\n(VS8\nI0\nI1\ntR(I3\nV|\nN(Va\nt}I8\nI1\nI0\ntbI00\nVabcdefgh\nt",  # fields
    ],
)
def test_crafted_array_state_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match=r"file.pickle: refused to load .*numpy"):
        load_pickle(write(tmp_path, array_pickle(state)))


def short_string(data: bytes) -> bytes:
    """A Python 2 `str` in protocol 2 (SHORT_BINSTRING)."""
    return b"U" + struct.pack("<B", len(data)) + data


def python2_array(values: np.ndarray) -> bytes:
    """What Python 2 with numpy 1 wrote for a one-dimensional int64 array, protocol 2."""
    dtype = b"cnumpy\ndtype\n" + short_string(b"i8") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + short_string(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = (
        b"(K\x01K" + struct.pack("<B", len(values)) + b"\x85" + dtype + b"\x89" + short_string(values.tobytes()) + b"t"
    )
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short_string(b"b") + b"\x87R"
    return new + state + b"b"


@pytest.mark.parametrize("values", [[1, 2, 3], [-1, 200, 65535]], ids=["ascii bytes", "other bytes"])
def test_python2_arrays(tmp_path, values):
    expected = np.array(values, dtype="<i8")
    loaded = load_pickle(write(tmp_path, b"\x80\x02]" + python2_array(expected) + b"a."))
    assert same(loaded, [expected])


def test_python2_strings(tmp_path):
    # protocol 0, as a Python 2 shell writes [{1: 'bird'}, 'caf\xe9']
    loaded = load_pickle(write(tmp_path, b"(lp0\n(dp1\nI1\nS'bird'\np2\nsaS'caf\\xe9'\np3\na."))
    assert loaded == [{1: "bird"}, "caf\xe9"]
    # protocol 2
    loaded = load_pickle(
        write(tmp_path, b"\x80\x02]" + short_string(b"bird") + b"a" + short_string(b"caf\xe9") + b"a.")
    )
    assert loaded == ["bird", "caf\xe9"]
    # a set, protocol 2
    loaded = load_pickle(write(tmp_path, b"\x80\x02c__builtin__\nset\n]K\x01a\x85R."))
    assert loaded == {1}


def test_damaged_files(tmp_path):
    whole = pickle.dumps(["word"] * 3 + [np.arange(100)], protocol=2)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"file.pickle"):
            load_pickle(write(tmp_path, whole[:size]))
    for content in (b"", b"hello\n", b"\x89PNG\r\n\x1a\n", b"version https://git-lfs"):
        with pytest.raises(ValueError, match=r"file.pickle: expected a complete pickle"):
            load_pickle(write(tmp_path, content))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pickle"):
        load_pickle(tmp_path / "nothing.pickle")


def nested(opcode: bytes, count: int) -> bytes:
    """A tuple of two, each of which is a tuple of two, and so on: named twice, held once."""
    return b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(count)) + opcode


LONG = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
ONES, TWOS = b"J\xff\xff\xff\xff", b"J\xfe\xff\xff\xff"
BOMBS = {
    "a place in the memo": b"Nr\xff\xff\xff\x0f.",
    "a place in the memo, in words": b"Np268435455\n.",
    "a negative place": b"Np-1\n.",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "a bytearray that is not there": b"\x96" + struct.pack("<Q", 1 << 36) + b".",
    "a string that is not there": b"T" + struct.pack("<i", 0x7FFFFFFF) + b"ab.",
    "a string of negative length": b"T\xff\xff\xff\xffab.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a long of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a number of a million bytes": b"\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "a number of negative length": b"\x8b\xff\xff\xff\xff.",
    "a key that is never hashed": b"}" + nested(b"Ns.", 60),
    "a member that is never hashed": b"\x8f(" + nested(b"\x90.", 60),
    "a frozenset that is never hashed": b"(" + nested(b"\x91.", 60),
    "a set that is never hashed": b"c__builtin__\nset\n(" + nested(b"l\x85R.", 60),
    "what nobody can walk through": nested(b".", 60),
    "the same, of lists": b"]q\x00" + b"".join(b"](h\x00h\x00eq\x00" for _ in range(60)) + b".",
    "the same, as a shape": array_pickle(b"(I1\n" + nested(b"cnumpy\ndtype\n(Vf8\nI0\nI1\ntRI00\nVabcdefgh\nt", 60)),
    "one text in many places": LONG + b"q\x00](" + b"h\x00" * 2000 + b"e.",
    "thousands of sets of one list": b"](" + b"K\x01" * 50_000 + b"eq\x00](" + b"c__builtin__\nset\nh\x00\x85R" * 5000
    + b"e.",
    "thousands of copies of one text": LONG + b"q\x00](" + b"c_codecs\nencode\nh\x00\x85R" * 5000 + b"e.",
    "arrays of one text": LONG + b"q\x00cnumpy\ndtype\n(VS1048576\nI0\nI1\ntRq\x01]("
    + b"cnumpy.core.multiarray\nscalar\nh\x01h\x00\x86R" * 5000 + b"e.",
    "keys of one hash": b"}(" + b"".join(
        b"(" + b"".join(TWOS if number >> bit & 1 else ONES for bit in range(12)) + b"tN" for number in range(4096)
    ) + b"u.",
    "numbers of one hash": b"}(" + b"".join(
        b"\x8a\x0c" + (number * (2**61 - 1)).to_bytes(12, "little") + b"N" for number in range(1, 4096)
    ) + b"u.",
    "sets without end": b"](" + b"\x8f" * 400_000 + b"e.",
    "a thousand levels": b"](K\x01e" + b"\x85" * 1000 + b".",
    "a hundred thousand levels": b"]" * 100_000 + b"a" * 99_999 + b".",
    "a shape of many": array_pickle(b"(I1\n(" + b"J\xff\xff\xff\x7f" * 50_000
    + b"tcnumpy\ndtype\n(Vf8\nI0\nI1\ntRI00\nVa\nt"),
}  # fmt: skip


def refuse_all(folder: Path) -> None:
    """In a process with little room."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
    for name, content in BOMBS.items():
        path, began = write(folder, content), time.process_time()
        with pytest.raises(ValueError, match=r"file.pickle") as error:
            load_pickle(path)
        assert "MemoryError" not in str(error.value), name
        assert len(str(error.value)) < 1000, name
        assert time.process_time() - began < 5, name


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what a process takes")
def test_a_file_asks_for_no_more_time_and_memory_than_its_size_allows(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=refuse_all, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_what_is_shared_and_repeated_in_sound_files_loads(tmp_path):
    captions = [f"a bird number {i} with a long red bill and small black wings" for i in range(10)]
    for content in (
        [captions] * 5000,  # captions of a class, for each of its pictures
        {("a", i): (-1, -2, i) for i in range(2000)},
        [{("left", "right"): i} for i in range(2000)],
        {frozenset({i}) for i in range(2000)},
        [list(range(300))] * 3 + [[0, 255, 256, 65535, 65536, -1]],
        {2**70 + i: i for i in range(1000)},
        {i * 0.5: None for i in range(2000)},
    ):
        for protocol in (0, 2, 4):
            assert load_pickle(write(tmp_path, content, protocol)) == content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_random_content_is_read_as_pickle_reads_it(tmp_path, protocol):
    rng = random.Random(protocol)
    leaves = (
        lambda: rng.randrange(-(2**40), 2**40), lambda: rng.randrange(300), lambda: rng.choice(("", "\xe9", "\ud800")),
        lambda: rng.random(), lambda: None, lambda: rng.random() < 0.5, lambda: rng.randbytes(rng.randrange(300)),
        lambda: "x" * rng.randrange(300), lambda: -(2**90),
    )  # fmt: skip
    seen = []

    def make(depth):
        if seen and rng.random() < 0.1:
            return rng.choice(seen)
        if depth == 0 or rng.random() < 0.3:
            made = rng.choice(leaves)()
        else:
            parts = [make(depth - 1) for _ in range(rng.randrange(5))]
            keys = [rng.choice(leaves)() for _ in parts]
            made = rng.choice(
                (lambda: parts, lambda: tuple(parts), lambda: dict(zip(keys, parts, strict=True)), lambda: set(keys),
                 lambda: frozenset(keys))
            )()  # fmt: skip
        seen.append(made)
        return made

    for _ in range(50):
        content = [make(4) for _ in range(4)]
        assert same(load_pickle(write(tmp_path, content, protocol)), content)
