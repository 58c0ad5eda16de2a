"""A machine that reads pickles of plain data, in time and memory that the size of the file bounds.

Python's own reader makes room for whatever a file asks for: nine bytes take gigabytes by naming a large place in the
memo, and a few dozen build a key whose hash is never finished. The machine here knows the operations that data need,
calls nothing but what it is given, and charges whatever costs more than the bytes that ask for it.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections import Counter
from collections.abc import Callable

# What may be charged: about 16 bytes, or as many nanoseconds, each. A sound file is charged less than a fifth of it.
_CHARGES, _CHARGES_PER_BYTE = 1 << 22, 4
_SET = 16
# Letters and bytes of a number: those of metadata are ids and counts.
_DIGITS, _LONG = 1000, 400
# Whole numbers below this, of either sign, have hashes of their own.
_OWN_HASH = 1 << 60
# Keys of one hash in one container, other than plain ones: each is compared with all the others.
_SAME_HASH = 100
# Small numbers, and lists of them, of which caption files consist: those are read at once.
_SMALL, _SMALL_RUN, _SMALL_LIST = (
    re.compile(pattern, re.DOTALL) for pattern in (rb"K.|M..", rb"(?:K.|M..)+", rb"(q.|r....|\x94)?\(((?:K.|M..)+)e")
)
_PLAIN_KEYS = (float, bool, type(None))
_HELD = (list, tuple, dict, set, frozenset)


class RefusedError(ValueError):
    """Content that is not admitted; the message says what."""


def shown(value: object) -> str:
    """A value for a message, cut; of what can be long in itself the type alone."""
    if isinstance(value, (str, bytes)):
        return f"{value[:60]!r:.60}"
    return f"{value!r:.60}" if isinstance(value, (int, float, type(None))) else type(value).__name__


class Machine:
    """Reads one pickle, of any protocol.

    Args:
        data: the file's bytes.
        encoding: of the strings that Python 2 wrote.
        find: gives what stands for a module's name in the file, or refuses. What it gives is called by the file's
            arguments, and is the only thing that is.
    """

    def __init__(self, data: bytes, encoding: str, find: Callable[[str, str], object]) -> None:
        self._data, self._place = data, 0
        self._encoding, self._find = encoding, find
        self._stack: list = []
        self._marked: list[list] = []
        self._memo: list = []
        self._left = _CHARGES + _CHARGES_PER_BYTE * len(data)
        self._hashes: Counter[tuple[int, int]] = Counter()

    def load(self) -> object:
        """The content.

        Raises:
            RefusedError: an operation, a name or an extent that no metadata needs.
            EOFError, LookupError, TypeError, ValueError: damaged.
        """
        data = self._data
        while self._place < len(data):
            code = data[self._place]
            self._place += 1
            if code == _STOP:
                return self._stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f"{bytes([code])!r} at byte {self._place - 1} is nothing that data need")
            operation(self)
        raise EOFError("it ends too early")

    # ---- bytes

    def _take(self, count: int) -> bytes:
        place = self._place
        if not 0 <= count <= len(self._data) - place:
            raise EOFError(f"it ends before {count} bytes that it announces")
        self._place = place + count
        return self._data[place : self._place]

    def _number(self, code: str) -> int:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._place)
        if end < 0:
            raise EOFError("it ends within a line")
        return self._take(end + 1 - self._place)[:-1]

    def _digits(self) -> bytes:
        line = self._line()
        if len(line) > _DIGITS:
            raise RefusedError(f"a number of {len(line)} digits")
        return line

    def _charge(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise RefusedError("more work than a file of its size can need")

    def _pop_marked(self) -> list:
        items, self._stack = self._stack, self._marked.pop()
        return items

    # ---- numbers and text

    def _small_numbers(self) -> None:
        run = _SMALL_RUN.match(self._data, self._place - 1)
        if run is None:
            raise EOFError("it ends within a number")
        self._place = run.end()
        self._stack += _small(run[0])

    def _int(self) -> None:
        line = self._digits()
        self._stack.append(line == b"01" if line in (b"00", b"01") else int(line, 0))

    def _long(self) -> None:
        self._stack.append(int(self._digits().removesuffix(b"L"), 0))

    def _binary_long(self, code: str) -> None:
        count = self._number(code)
        if count > _LONG:
            raise RefusedError(f"a number of {count} bytes")
        self._stack.append(int.from_bytes(self._take(count), "little", signed=True))

    def _string(self) -> None:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        self._stack.append(codecs.escape_decode(line[1:-1])[0].decode(self._encoding))

    def _push(self, value: object) -> None:
        self._stack.append(value)

    # ---- containers

    def _list(self) -> None:
        whole = _SMALL_LIST.match(self._data, self._place)
        if whole is None:
            self._stack.append([])
            return
        put, numbers = whole.groups()
        self._stack.append(_small(numbers))
        self._place = whole.end()
        if put == b"\x94":
            self._memoize()
        elif put is not None:
            self._put(int.from_bytes(put[1:], "little"))

    def _append(self) -> None:
        value = self._stack.pop()
        _as(list, self._stack[-1]).append(value)

    def _appends(self) -> None:
        items = self._pop_marked()
        _as(list, self._stack[-1]).extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        holder = _as(dict, self._stack[-1])
        self._check_key(key, holder)
        holder[key] = value

    def _fill(self, holder: dict, items: list) -> dict:
        if len(items) % 2:
            raise ValueError("a dict with a key that has no value")
        for key in items[::2]:
            self._check_key(key, holder)
        holder.update(zip(items[::2], items[1::2], strict=True))
        return holder

    def _set_items(self) -> None:
        items = self._pop_marked()
        self._fill(_as(dict, self._stack[-1]), items)

    def _dict(self) -> None:
        items = self._pop_marked()
        self._stack.append(self._fill({}, items))

    def _collect(self, kind: type) -> None:
        items = self._pop_marked()
        self._stack.append(kind(items))

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("a tuple of more than there is")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _empty_set(self) -> None:
        self._charge(_SET)
        self._stack.append(set())

    def _add_items(self) -> None:
        items = self._pop_marked()
        holder = _as(set, self._stack[-1])
        for item in items:
            self._check_key(item, holder)
        holder.update(items)

    def _frozenset(self) -> None:
        self._charge(_SET)
        items = self._pop_marked()
        for item in items:
            self._check_key(item, items)
        self._stack.append(frozenset(items))

    def _check_key(self, key: object, holder: object) -> None:
        """Charge what it costs to look a key up; a tuple's hash is computed anew each time, through all it holds."""
        kind = type(key)
        if kind is str or kind is bytes:
            self._charge(len(key) >> 3)
        elif kind not in _PLAIN_KEYS and not (kind is int and -_OWN_HASH < key < _OWN_HASH):
            inside = [key]
            while inside:
                self._charge(4)
                part = inside.pop()
                if isinstance(part, (tuple, frozenset)):
                    inside.extend(part)
            same = id(holder), hash(key)
            self._hashes[same] += 1
            if self._hashes[same] > _SAME_HASH:
                raise RefusedError("keys that are made to be mistaken for each other")

    # ---- the stack and the memo

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_marked()

    def _put(self, index: int) -> None:
        # Each place that is named belongs to something in the file, which takes a byte at least.
        if not 0 <= index <= len(self._data):
            raise RefusedError(f"the place {index} in the memo of a file of {len(self._data)} bytes")
        memo = self._memo
        if index >= len(memo):
            memo += [_NOTHING] * (index + 1 - len(memo))
        memo[index] = self._stack[-1]

    def _memoize(self) -> None:
        self._memo.append(self._stack[-1])

    def _get(self, index: int) -> None:
        value = self._memo[index] if 0 <= index < len(self._memo) else _NOTHING
        if value is _NOTHING:
            raise KeyError(f"nothing lies at the place {index} in the memo")
        self._stack.append(value)

    # ---- names and calls

    def _global(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        self._stack.append(self._find(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(_as(str, module), _as(str, name)))

    def _call(self) -> None:
        arguments, function = _as(tuple, self._stack.pop()), self._stack.pop()
        if not callable(function):
            raise RefusedError(f"a call of a {type(function).__name__}")
        self._charge_parts(arguments)
        for part in arguments:
            for key in part if isinstance(part, _HELD) else ():  # a set is made of one
                self._check_key(key, part)
        self._stack.append(function(*arguments))

    def _build(self) -> None:
        state = self._stack.pop()
        build = getattr(self._stack[-1], "__setstate__", None)
        if build is None:
            raise RefusedError(f"a state set on a {type(self._stack[-1]).__name__}")
        self._charge_parts(state if type(state) is tuple else ())
        build(state)

    def _charge_parts(self, parts: tuple) -> None:
        """What is called copies what it is given."""
        self._charge(_SET)
        for part in parts:
            if isinstance(part, (str, bytes, bytearray)):
                self._charge(len(part) >> 3)
            elif isinstance(part, _HELD):
                self._charge(4 * len(part))

    def _instance(self) -> None:
        self._find(self._line().decode(), self._line().decode())
        raise RefusedError("an object of a class")


def _small(written: bytes) -> list[int]:
    """The numbers in a run of K (one byte) and M (two)."""
    numbers, place = [], 0
    while place < len(written):
        if written[place] == 75:  # K
            numbers.append(written[place + 1])
            place += 2
        else:
            numbers.append(written[place + 1] | written[place + 2] << 8)
            place += 3
    return numbers


def _as(kind: type, value: object) -> object:
    """The value, if it is of this very type."""
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} is needed, a {type(value).__name__} is there")
    return value


def _text(code: str) -> Callable[[Machine], None]:
    return lambda m: m._push(m._take(m._number(code)).decode("utf-8", "surrogatepass"))


def _old_text(code: str) -> Callable[[Machine], None]:
    return lambda m: m._push(m._take(m._number(code)).decode(m._encoding))


def _bytes(code: str, kind: type = bytes) -> Callable[[Machine], None]:
    return lambda m: m._push(kind(m._take(m._number(code))))


_NOTHING = object()
_STOP = ord(".")
# By their letters, as the standard library's pickletools lists them.
_BY_LETTER: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda m: m._take(1), b"\x95": lambda m: m._take(8),  # protocol, frame: of no meaning here
    # numbers and the like
    b"N": lambda m: m._push(None), b"\x88": lambda m: m._push(True), b"\x89": lambda m: m._push(False),
    b"I": Machine._int, b"L": Machine._long, b"F": lambda m: m._push(float(m._digits())),
    b"K": Machine._small_numbers, b"M": Machine._small_numbers, b"J": lambda m: m._push(m._number("<i")),
    b"\x8a": lambda m: m._binary_long("<B"), b"\x8b": lambda m: m._binary_long("<i"),
    b"G": lambda m: m._push(m._number(">d")),
    # text and bytes
    b"S": Machine._string, b"U": _old_text("<B"), b"T": _old_text("<i"),
    b"V": lambda m: m._push(m._line().decode("raw-unicode-escape")),
    b"\x8c": _text("<B"), b"X": _text("<I"), b"\x8d": _text("<Q"),
    b"C": _bytes("<B"), b"B": _bytes("<I"), b"\x8e": _bytes("<Q"), b"\x96": _bytes("<Q", bytearray),
    # containers
    b"]": Machine._list, b"}": lambda m: m._push({}), b")": lambda m: m._push(()),
    b"l": lambda m: m._collect(list), b"t": lambda m: m._collect(tuple),
    b"\x85": lambda m: m._tuple(1), b"\x86": lambda m: m._tuple(2), b"\x87": lambda m: m._tuple(3),
    b"a": Machine._append, b"e": Machine._appends,
    b"s": Machine._set_item, b"u": Machine._set_items, b"d": Machine._dict,
    b"\x8f": Machine._empty_set, b"\x90": Machine._add_items, b"\x91": Machine._frozenset,
    # the stack and the memo
    b"(": Machine._mark, b"0": Machine._pop, b"1": Machine._pop_marked, b"2": lambda m: m._push(m._stack[-1]),
    b"p": lambda m: m._put(int(m._digits())), b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")), b"\x94": Machine._memoize,
    b"g": lambda m: m._get(int(m._digits())), b"h": lambda m: m._get(m._number("<B")),
    b"j": lambda m: m._get(m._number("<I")),
    # names and calls
    b"c": Machine._global, b"\x93": Machine._stack_global, b"R": Machine._call, b"b": Machine._build,
    b"i": Machine._instance,
}  # fmt: skip
_OPERATIONS = {letter[0]: operation for letter, operation in _BY_LETTER.items()}
