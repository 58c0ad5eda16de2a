"""Reading metadata pickles without running anything they contain.

Text-to-image data sets ship their captions, file names and class ids as pickles, many of them written by Python 2. A
pickle may name any importable function and have it called, so the reader here admits a short list of names, and none of
them is the real thing: each stands for a small builder of ours that checks its arguments. In particular numpy's own
`dtype.__setstate__` is never called, because a crafted state makes numpy read memory that is not the file's.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_plugin.files import open_file
from vlm_plugin.foreign import foreign
from vlm_plugin.opcodes import Machine, RefusedError, shown

__all__ = ["load_pickle"]

_CONTENT = "lists, tuples, dicts, sets, strings, bytes, numbers, None and numpy arrays"
# Type codes as numpy writes them, without the byte order: booleans, (unsigned) integers, floats, complex numbers, byte
# strings, text and objects. Records, sub-arrays and dates are left out: no metadata file here needs them.
_TYPE_CODE = re.compile(r"[<>=|]?(b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUa]\d{1,9}|O[48]?)")
_BYTE_ORDERS = ("<", ">", "=", "|")


class _Builder:
    """What an admitted name stands for while a file is read: it can be called, and nothing else.

    An instance without attributes, not a function or a class: a pickle can set attributes of the objects it names (the
    BUILD operation), which would otherwise change ours for the rest of the process.
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., object]) -> None:
        self._build = build

    def __call__(self, *args: object) -> object:
        return self._build(*args)

    def __setstate__(self, state: object) -> None:
        raise RefusedError("a state is set on a function or type")


class _Dtype:
    """A numpy dtype of the file: a type code and a byte order, both checked."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        match = _TYPE_CODE.fullmatch(code) if isinstance(code, str) else None
        if match is None:
            raise RefusedError(f"numpy dtype {shown(code)}")
        self._code = match.group(1)
        self._order = code[0] if code[0] in _BYTE_ORDERS else "="

    def __setstate__(self, state: object) -> None:
        # (version, byte order, sub-array, field names, fields, item size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise RefusedError("a numpy dtype with fields, a sub-array or an unknown state")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in _BYTE_ORDERS:
            raise RefusedError(f"numpy byte order {shown(order)}")
        self._order = order

    def resolve(self) -> np.dtype:
        """The real dtype, made from the checked code alone."""
        code = self._code
        if code[0] == "O":
            return np.dtype(object)
        return np.dtype(self._order + ("S" + code[1:] if code[0] == "a" else code))


class _Array:
    """A numpy array of the file; its content arrives after its creation, as the pickled state."""

    __slots__ = ("_state",)

    def __init__(self, subtype: object, shape: object = (0,), code: object = b"b") -> None:
        if subtype is not _NDARRAY:
            raise RefusedError(f"a numpy array of type {type(subtype).__name__}")
        self._state: tuple[Any, ...] | None = None

    def __setstate__(self, state: object) -> None:
        # (version, shape, dtype, Fortran order, content); the version is missing in very old files.
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise RefusedError("a numpy array with an unknown state")
        self._state = state[-4:]

    def content(self) -> object:
        """What the state holds as content: bytes, or a list of objects."""
        return None if self._state is None else self._state[3]

    def resolve(self, memo: dict[int, tuple[object, object]]) -> np.ndarray:
        """The real array, content copied out of the file."""
        if self._state is None:
            raise RefusedError("a numpy array without content")
        shape, dtype, fortran, content = self._state
        return _array(content, dtype, shape, "F" if fortran else "C", memo)


def _raw_bytes(content: object) -> bytes:
    """Array content as bytes; Python 2 wrote it as a string, which reads as text of the same code points."""
    if isinstance(content, str):
        return content.encode("latin1")
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    raise RefusedError(f"numpy content of type {type(content).__name__}")


def _array(
    content: object, dtype: object, shape: object, order: str, memo: dict[int, tuple[object, object]] | None = None
) -> np.ndarray:
    """An array of checked `dtype` and `shape` holding exactly `content` (bytes, or with `memo` a list of objects)."""
    if not isinstance(dtype, _Dtype):
        raise RefusedError(f"a numpy array whose dtype is of type {type(dtype).__name__}")
    if not isinstance(shape, tuple) or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):
        raise RefusedError(f"numpy shape {shown(shape)}")
    real = dtype.resolve()
    count = math.prod(shape)
    if real.hasobject:
        # The elements went through the same unpickler, so they are as harmless as those of a list.
        if memo is None or not isinstance(content, list) or len(content) != count:
            raise RefusedError("numpy objects whose content is not a list of their number")
        flat = np.empty(count, dtype=object)
        for i, item in enumerate(content):
            flat[i] = _resolve(item, memo)
        return flat.reshape(shape, order=order)
    raw = _raw_bytes(content)
    if len(raw) != count * real.itemsize:
        raise RefusedError(f"a numpy array of {count} {real} elements with {len(raw)} bytes")
    if not raw:
        return np.zeros(shape, dtype=real, order=order)
    return np.frombuffer(raw, dtype=real).reshape(shape, order=order).copy(order=order)


def _scalar(dtype: object, content: object = b"") -> object:
    """A numpy scalar from its bytes."""
    return _array(content, dtype, (1,), "C")[0]


def _from_buffer(content: object, dtype: object, shape: object, order: object) -> np.ndarray:
    """An array as pickle protocol 5 writes it."""
    return _array(content, dtype, shape, "F" if order == "F" else "C")


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Bytes as Python 3 writes them for Python 2: text plus the codec's name. Only that one codec is run."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode with encoding {shown(encoding)}")
    return text.encode("latin1")


def _refused(*_: object) -> object:
    raise RefusedError("a numpy array made by a call of its type")


# Only to be passed to numpy's `_reconstruct`.
_NDARRAY = _Builder(_refused)
_NUMPY = {"ndarray": _NDARRAY, "dtype": _Builder(_Dtype)}
_MULTIARRAY = {**_NUMPY, "_reconstruct": _Builder(_Array), "scalar": _Builder(_scalar)}
_NUMERIC = {"_frombuffer": _Builder(_from_buffer)}
_BUILTINS = {
    "set": _Builder(set),
    "frozenset": _Builder(frozenset),
    "complex": _Builder(complex),
    # As the old protocols write empty bytes. With arguments it could allocate without limit.
    "bytes": _Builder(lambda: b""),
}
# Module -> name -> what stands for it: all that a pickle may name, as numpy 1 and 2 and Python 2 and 3 write it.
_ADMITTED: dict[str, dict[str, _Builder]] = {
    "numpy": _NUMPY,
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": _NUMERIC,
    "numpy._core.numeric": _NUMERIC,
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "_codecs": {"encode": _Builder(_encode)},
}


class _Names:
    """Finds the builders above, and nothing else.

    Attributes:
        used: a file named one.
    """

    def __init__(self) -> None:
        self.used = False

    def find(self, module: str, name: str) -> object:
        """The builder for `module.name`, or a refusal; nothing is ever imported."""
        builder = _ADMITTED.get(module, {}).get(name)
        if builder is None:
            raise RefusedError(f"{module[:100]}.{name[:100]}")
        self.used = True
        return builder


# Containers within containers, of which sound metadata has three or four; and parts of a content that is written out,
# where what is shared counts each time: whoever walks or shows it meets it so.
_DEEPEST, _PARTS, _PARTS_PER_BYTE = 100, 1 << 24, 16
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset, _Array})
_TEXTS = frozenset({str, bytes, bytearray})


def _check_extent(value: object, limit: int) -> None:
    """Refuse what is nested too deep, or holds one thing in so many places that nobody could walk through it."""
    known: dict[int, tuple[int, int]] = {}  # parts and depth, by id; of what holds itself, what it has at first
    pending: list[list[Any]] = [[value, 0, [value] if type(value) in _CONTAINERS else [], 0]]
    while pending:
        item, own, inside, place = pending[-1]
        while place < len(inside):
            part = inside[place]
            place += 1
            if id(part) not in known:
                count, within = _inside(part)
                known[id(part)] = count, 1
                if len(pending) > _DEEPEST:
                    raise RefusedError("containers nested too deep")
                if within:
                    pending[-1][3] = place
                    pending.append([part, count, within, 0])
                    break
        else:
            pending.pop()
            parts = own + sum(known[id(part)][0] for part in inside)
            depth = 1 + max((known[id(part)][1] for part in inside), default=0)
            if depth > _DEEPEST or parts > limit:
                raise RefusedError("containers nested too deep, or shared too often")
            known[id(item)] = parts, depth


def _inside(item: list | tuple | dict | set | frozenset | _Array) -> tuple[int, list]:
    """How much a container holds besides other containers, and these."""
    if isinstance(item, _Array):
        members = [item.content()]
    else:
        members = [*item, *item.values()] if isinstance(item, dict) else item
    kinds = set(map(type, members))
    letters = sum(len(member) for member in members if type(member) in _TEXTS) if kinds & _TEXTS else 0
    held = [member for member in members if type(member) in _CONTAINERS] if kinds & _CONTAINERS else []
    return 1 + len(members) + letters // 16, held


def _resolve(value: object, memo: dict[int, tuple[object, object]]) -> object:
    """`value` with every stand-in replaced by the real numpy object; lists, dicts and sets are changed in place.

    `memo` maps the id of a visited object to (the object, its replacement). It keeps the object alive, so that no id is
    used twice, and ends the walk on containers that contain themselves.
    """
    if not isinstance(value, (list, tuple, dict, set, frozenset, _Array, _Dtype, _Builder)):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    result: object = value
    if isinstance(value, _Builder):
        raise RefusedError("a bare function or type")
    if isinstance(value, (list, dict, set)):
        memo[id(value)] = (value, value)
    if isinstance(value, list):
        value[:] = [_resolve(item, memo) for item in value]
    elif isinstance(value, dict):
        items = [(_resolve(key, memo), _resolve(item, memo)) for key, item in value.items()]
        value.clear()
        value.update(items)
    elif isinstance(value, set):
        members = [_resolve(item, memo) for item in value]
        value.clear()
        value.update(members)
    elif isinstance(value, (tuple, frozenset)):
        result = type(value)(_resolve(item, memo) for item in value)
    elif isinstance(value, _Array):
        result = value.resolve(memo)
    elif isinstance(value, _Dtype):
        result = value.resolve()
    memo[id(value)] = (value, result)
    return result


def _load(data: bytes, encoding: str) -> object:
    """One reading of a file's bytes, Python 2 strings decoded as `encoding`."""
    names = _Names()
    value = Machine(data, encoding, names.find).load()
    _check_extent(value, _PARTS + _PARTS_PER_BYTE * len(data))
    if names.used:
        # Arrays are filled in after they are created, so the stand-ins can only be replaced at the end.
        value = _resolve(value, {})
    return value


def load_pickle(path: str | os.PathLike[str]) -> object:
    """Read a metadata pickle without executing anything from it.

    Source: ours. Admitted are lists, tuples, dicts, sets, strings, bytes, numbers, None, booleans and numpy arrays,
    scalars and dtypes of plain types (also arrays of objects that are themselves admitted), in every pickle protocol,
    written by Python 2 or 3 and numpy 1 or 2. Python 2 strings are read as ASCII; where that fails, the whole file is
    read again as latin-1, which never fails and keeps array bytes intact (accented text of such a file then shows as
    its single bytes). What a file takes in time and memory is bounded by its size.

    Args:
        path: the file.

    Returns:
        The content.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file names anything else (the message has the file and the refused name), asks for more than a
            file of its size can need, or is truncated or no pickle at all.
    """
    name = os.fspath(path)
    with open_file(name) as file:
        data = file.read()
    try:
        try:
            return _load(data, "ASCII")
        except UnicodeDecodeError:
            return _load(data, "latin1")
    except RefusedError as refusal:
        raise ValueError(f"{name}: refused to load {refusal}; this pickle may hold only {_CONTENT}") from None
    except Exception as error:
        # A damaged pickle can fail with nearly any type of exception: EOFError, KeyError, OverflowError, ...
        reason = f"{type(error).__name__}: {error}"[:200]
        got = f"got {found}" if (found := foreign(name)) else f"but reading it failed ({reason})"
        raise ValueError(f"{name}: expected a complete pickle file, {got}") from error
