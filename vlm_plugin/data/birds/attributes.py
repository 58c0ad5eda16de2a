"""What synthetic birds can look like: attributes, their values, classes and splits."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping

COLOURS = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")
# Attribute name -> its values. The order is fixed: indices into it are what `BirdTruth` returns.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "crown": COLOURS,
    "back": COLOURS,
    "wings": COLOURS,
    "breast": COLOURS,
    "bill": ("yellow", "red", "black"),
    "bill_length": ("short", "long"),
    "size": ("small", "large"),
    "background": ("sky", "leaves", "sand", "snow", "dusk"),
}
# The attributes whose combination is a class.
CLASS_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name != "background")
# What a set of birds keeps its truth in.
ATTRIBUTES_FILE = "attributes.json"
SPLITS = ("train", "validation", "test")
_CLASSES = math.prod(len(ATTRIBUTES[name]) for name in CLASS_ATTRIBUTES)


def class_number(values: Mapping[str, str]) -> int:
    """Number of a class, 1 to 49,152: the same species has the same number in every set ever made.

    Args:
        values: a value for each attribute but the background (which is ignored).

    Raises:
        ValueError: an attribute is missing or has an unknown value.
    """
    number = 0
    for name in CLASS_ATTRIBUTES:
        number = number * len(ATTRIBUTES[name]) + value_index(values, name)
    return number + 1


def class_values(number: int) -> dict[str, str]:
    """The combination behind a class number: the inverse of `class_number`.

    Raises:
        ValueError: the number is not that of a class.
    """
    if not 1 <= number <= _CLASSES:
        raise ValueError(f"number: expected a class number from 1 to {_CLASSES}, got {number}")
    rest, values = number - 1, {}
    for name in reversed(CLASS_ATTRIBUTES):
        rest, index = divmod(rest, len(ATTRIBUTES[name]))
        values[name] = ATTRIBUTES[name][index]
    return {name: values[name] for name in CLASS_ATTRIBUTES}


def split_of(values: Mapping[str, str]) -> str:
    """The split a class belongs to ("train", "validation" or "test"; about 80, 10 and 10 percent of the classes).

    It hashes the combination only, so that a class a model was trained on never turns up in another seed's test set.
    """
    text = "|".join(f"{name}={ATTRIBUTES[name][value_index(values, name)]}" for name in CLASS_ATTRIBUTES)
    bucket = int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def value_index(values: Mapping[str, str], name: str) -> int:
    """Position of an attribute's value in `ATTRIBUTES`.

    Raises:
        ValueError: the attribute is missing or has an unknown value.
    """
    value = values.get(name)
    if value not in ATTRIBUTES[name]:
        raise ValueError(f"values[{name!r}]: expected one of {', '.join(ATTRIBUTES[name])}, got {value!r}")
    return ATTRIBUTES[name].index(value)


def first_classes(split: str, count: int, seed: int) -> list[int]:
    """The first `count` classes of a split, in a seeded order: a larger set only adds classes behind them."""
    rng = random.Random(f"birds/classes/{seed}/{split}")
    found: dict[int, None] = {}  # a dict keeps the order of insertion
    while len(found) < count:
        number = rng.randrange(_CLASSES) + 1
        if number not in found and split_of(class_values(number)) == split:
            found[number] = None
    return list(found)
