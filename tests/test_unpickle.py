"""load_pickle reads every ordinary metadata pickle and runs nothing from any other."""

from __future__ import annotations

import os
import pickle
import struct
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
