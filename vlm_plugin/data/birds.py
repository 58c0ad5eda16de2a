"""Synthetic birds: small pictures with captions whose truth is known.

A bird is drawn from eight attributes (`ATTRIBUTES`), and every caption names some of them. So anything a model says
about a picture can be checked against the truth, on a laptop and without downloading a data set. `make_birds` writes
the folder layout that AttnGAN's users have for CUB-200-2011, and `BirdTruth` reads the attributes back.

A class ("species") is a combination of all attributes but the background. Which split a class belongs to depends on the
combination alone, never on the seed or the sizes: no training set ever holds a class of a validation or test set.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import re
import secrets
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

COLOURS = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")

#: Attribute name -> its values. The order is fixed: indices into it are what `BirdTruth` returns.
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
CLASS_ATTRIBUTES = tuple(name for name in ATTRIBUTES if name != "background")
SPLITS = ("train", "validation", "test")
PICTURES_PER_CLASS = 10
CAPTIONS_PER_PICTURE = 10

# Raised whenever the same arguments would give other bytes, so that an old folder is not mistaken for a new one.
_VERSION = 1
_ARGUMENTS_FILE = "birds.json"
_Entry = TypeVar("_Entry")


# ---------------------------------------------------------------------------------------------------------------------
# Classes and splits
# ---------------------------------------------------------------------------------------------------------------------


def class_number(values: Mapping[str, str]) -> int:
    """Number of a class, 1 to 49,152: the same species has the same number in every set ever made.

    Args:
        values: a value for each attribute but the background (which is ignored).

    Raises:
        ValueError: an attribute is missing or has an unknown value.
    """
    number = 0
    for name in CLASS_ATTRIBUTES:
        number = number * len(ATTRIBUTES[name]) + _value_index(values, name)
    return number + 1


def class_values(number: int) -> dict[str, str]:
    """The combination behind a class number: the inverse of `class_number`.

    Raises:
        ValueError: the number is not that of a class.
    """
    total = math.prod(len(ATTRIBUTES[name]) for name in CLASS_ATTRIBUTES)
    if not 1 <= number <= total:
        raise ValueError(f"number: expected a class number from 1 to {total}, got {number}")
    rest, values = number - 1, {}
    for name in reversed(CLASS_ATTRIBUTES):
        rest, index = divmod(rest, len(ATTRIBUTES[name]))
        values[name] = ATTRIBUTES[name][index]
    return {name: values[name] for name in CLASS_ATTRIBUTES}


def split_of(values: Mapping[str, str]) -> str:
    """The split a class belongs to ("train", "validation" or "test"; about 80, 10 and 10 percent of the classes).

    It hashes the combination only, so that a class a model was trained on never turns up in another seed's test set.
    """
    text = "|".join(f"{name}={ATTRIBUTES[name][_value_index(values, name)]}" for name in CLASS_ATTRIBUTES)
    bucket = int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def _value_index(values: Mapping[str, str], name: str) -> int:
    value = values.get(name)
    if value not in ATTRIBUTES[name]:
        raise ValueError(f"values[{name!r}]: expected one of {', '.join(ATTRIBUTES[name])}, got {value!r}")
    return ATTRIBUTES[name].index(value)


def _classes(split: str, count: int, seed: int) -> list[int]:
    """The first `count` classes of a split, in a seeded order: a larger set only adds classes behind them."""
    total = math.prod(len(ATTRIBUTES[name]) for name in CLASS_ATTRIBUTES)
    rng = random.Random(f"birds/classes/{seed}/{split}")
    found: dict[int, None] = {}  # a dict keeps the order of insertion
    while len(found) < count:
        number = rng.randrange(total) + 1
        if number not in found and split_of(class_values(number)) == split:
            found[number] = None
    return list(found)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------

_RGB = {
    "red": (208, 34, 38),
    "yellow": (250, 214, 36),
    "green": (88, 182, 66),
    "blue": (40, 96, 222),
    "purple": (156, 68, 196),
    "brown": (128, 78, 40),
    "black": (30, 30, 34),
    "white": (246, 246, 246),
}
_BILL_RGB = {"yellow": (255, 190, 20), "red": (222, 36, 30), "black": (24, 24, 28)}

# The canvas carries part numbers, not colours: outlines are then simply the places where the number changes.
_BACKDROP, _PERCH, _LEG, _TAIL, _BACK, _BREAST, _CROWN, _WING, _QUILL, _BILL, _RING, _PUPIL = range(12)
_OUTLINED = (_PERCH, _TAIL, _BACK, _BREAST, _CROWN, _WING, _BILL)

_OVERSAMPLING = 4
_LARGE, _SMALL = 0.92, 0.92 * 0.74  # picture widths per unit of the drawing below
_MARGIN = 0.085  # the bird stays inside the central 83%: training crops 64 of 76 pixels

# The bird in its own frame: facing right, x forward, y down, the body's centre at the origin.
_BODY_AXES, _BODY_SLOPE = (0.235, 0.178), math.radians(-20)
_HEAD, _HEAD_RADIUS = np.array([0.168, -0.165]), 0.130
_TAIL_ROOT = np.array([-0.165, 0.05])
_TAIL_SHAPE = np.array([[0.02, -0.085], [-0.215, -0.060], [-0.235, 0.0], [-0.215, 0.055], [0.02, 0.06]])
_NECK_SHAPE = np.array([[-0.10, -0.13], [0.06, -0.235], [0.285, -0.12], [0.225, 0.02], [0.05, 0.08]])
_BREAST_SHAPE = np.array(
    [
        [0.34, -0.08],
        [0.24, -0.065],
        [0.15, -0.03],
        [0.08, 0.03],
        [-0.04, 0.075],
        [-0.30, 0.13],
        [-0.30, 0.32],
        [0.34, 0.32],
    ]
)
_CROWN_SHAPE = np.array(
    [[0.20, -0.035], [0.05, -0.035], [-0.04, -0.012], [-0.10, 0.03], [-0.22, 0.035], [-0.22, -0.3], [0.2, -0.3]]
)
_WING_SHOULDER, _WING_TIP, _WING_WIDTH = np.array([0.105, -0.025]), np.array([-0.275, 0.085]), 0.118
_HIPS, _LEG_LENGTH = np.array([[0.045, 0.13], [-0.035, 0.14]]), 0.135
_BILL_REACH = {"short": 0.072, "long": 0.215}


_Pixels = Callable[[np.ndarray], list[tuple[float, float]]]  # points of the drawing, (K, 2), to canvas pixels


class Pose(NamedTuple):
    """What varies between two pictures of one species, besides background and colour jitter."""

    facing: int  # 1 looks right, -1 looks left
    tilt: float  # of the body, radians, positive lifts the head
    head: float  # the head's height, units of the drawing
    tail: float  # the tail's angle, radians
    scale: float  # factor about 1
    place: tuple[float, float]  # where in the room that is left, 0 to 1 each


def _draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        facing=1 if rng.random() < 0.5 else -1,
        tilt=float(rng.uniform(-0.12, 0.20)),
        head=float(rng.uniform(-0.025, 0.02)),
        tail=float(rng.uniform(-0.28, 0.28)),
        scale=float(rng.uniform(0.96, 1.04)),
        place=(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))),
    )


def _ellipse(centre: np.ndarray, axes: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    turn = np.linspace(0.0, 2 * math.pi, 48, endpoint=False)
    return centre + _rotate(np.stack([axes[0] * np.cos(turn), axes[1] * np.sin(turn)], 1), angle)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _teardrop(shoulder: np.ndarray, tip: np.ndarray, width: float) -> np.ndarray:
    along = tip - shoulder
    across = np.array([-along[1], along[0]]) / np.hypot(*along)
    step = np.linspace(0.0, 1.0, 24)
    half = width * np.sqrt(step) * (1 - step) ** 0.75 * 1.75  # round at the shoulder, pointed at the tip
    upper = shoulder + step[:, None] * along + (0.85 * half)[:, None] * across
    lower = shoulder + step[:, None] * along - half[:, None] * across
    return np.concatenate([upper, lower[::-1]])


def _parts(values: Mapping[str, str], pose: Pose) -> tuple[list[tuple[int, np.ndarray, bool]], np.ndarray]:
    """Polygons in drawing order, as (part, points (K, 2), only inside the body?), and the two feet (2, 2)."""
    head = _HEAD + np.array([0.0, pose.head])
    wing = _teardrop(_WING_SHOULDER, _WING_TIP, _WING_WIDTH)
    # A small bird's bill is a little large for it, or it would be two pixels.
    grown = 1.2 if values["size"] == "small" else 1.0
    reach = _HEAD_RADIUS + grown * _BILL_REACH[values["bill_length"]]
    depth = grown * 0.058
    bill = head + np.array([[0.095, -depth], [reach, 0.028], [0.095, depth + 0.012]])
    polygons = [
        (_TAIL, _TAIL_ROOT + _rotate(_TAIL_SHAPE, pose.tail), False),
        (_BACK, _ellipse(np.zeros(2), _BODY_AXES, _BODY_SLOPE), False),
        (_BACK, _NECK_SHAPE, False),
        (_BACK, _ellipse(head, (_HEAD_RADIUS, _HEAD_RADIUS)), False),
        (_BREAST, _BREAST_SHAPE, True),
        (_CROWN, head + _CROWN_SHAPE, True),
        (_WING, wing, False),
        (_BILL, bill, False),
        (_RING, _ellipse(head + np.array([0.048, 0.002]), (0.038, 0.038)), False),
        (_PUPIL, _ellipse(head + np.array([0.052, 0.002]), (0.024, 0.024)), False),
    ]
    feet = _rotate(_HIPS, -pose.tilt) + np.array([0.0, _LEG_LENGTH])
    return [(part, _rotate(points, -pose.tilt), inside) for part, points, inside in polygons], feet


def draw_bird(values: Mapping[str, str], size: int = 64, seed: int = 0) -> Image.Image:
    """Draws one bird in side profile, on a perch.

    Args:
        values: a value for every name in `ATTRIBUTES`.
        size: side of the picture in pixels, at least 16.
        seed: picks pose, colour jitter and background texture; equal arguments give equal pictures.

    Returns:
        An RGB picture of size x size pixels, the whole bird inside its central 84%.

    Raises:
        ValueError: an attribute is missing or unknown, or the size is too small.
    """
    for name in ATTRIBUTES:
        _value_index(values, name)
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    rng = np.random.default_rng(seed)
    pose = _draw_pose(rng)
    polygons, feet = _parts(values, pose)

    # Fit the bird into the picture: turn it, scale it, then place it in the room that is left.
    scale = (_LARGE if values["size"] == "large" else _SMALL) * pose.scale
    outline = np.concatenate([points for _, points, inside in polygons if not inside] + [feet])
    outline = outline * np.array([pose.facing, 1])
    low, high = outline.min(0), outline.max(0)
    scale = min(scale, (1 - 2 * _MARGIN) / float((high - low).max()))
    room = 1 - 2 * _MARGIN - scale * (high - low)
    place = np.clip(0.5 + (np.array(pose.place) - 0.5) * np.array([1.0, 0.7]), 0, 1)
    origin = _MARGIN + room * place - scale * low
    side = size * _OVERSAMPLING

    def pixels(points: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (points * np.array([pose.facing, 1]) * scale + origin) * side]

    labels = _label_map(polygons, feet, pixels, scale, side, slope=float(rng.uniform(-0.05, 0.05)))
    colour = _paint(labels, values, scale, rng)
    backdrop = _backdrop(values["background"], side, rng)
    picture = np.where((labels == _BACKDROP)[..., None], backdrop, colour)
    # A box filter over whole blocks is exact at this factor and needs no resampling choices.
    picture = picture.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean((1, 3))
    picture += rng.normal(0.0, 1.5, picture.shape)
    return Image.fromarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8))


def _label_map(
    polygons: Sequence[tuple[int, np.ndarray, bool]],
    feet: np.ndarray,
    pixels: _Pixels,
    scale: float,
    side: int,
    slope: float,
) -> np.ndarray:
    """Part numbers, (side, side) uint8."""
    image = Image.new("L", (side, side), _BACKDROP)
    draw = ImageDraw.Draw(image)

    # The perch runs across the whole picture: only the bird itself must survive a crop.
    (x0, y0), (x1, y1) = pixels(feet)
    middle, level = (x0 + x1) / 2, (y0 + y1) / 2
    thick = max(0.042 * side * scale, 2.0)
    left, right = level - slope * middle, level + slope * (side - middle)
    draw.polygon([(0, left), (side, right), (side, right + thick), (0, left + 1.25 * thick)], fill=_PERCH)
    for (hip_x, hip_y), (x, _) in zip(pixels(feet - np.array([0.0, _LEG_LENGTH])), pixels(feet), strict=True):
        ground = level + slope * (x - middle)
        draw.line([(hip_x, hip_y), (x, ground)], fill=_LEG, width=max(round(0.020 * side * scale), 2))
        toe = 0.028 * side * scale
        draw.line([(x - toe, ground), (x + toe, ground)], fill=_LEG, width=max(round(0.024 * side * scale), 2))

    labels = np.asarray(image).copy()
    for part, points, inside in polygons:
        mask_image = Image.new("L", (side, side), 0)
        ImageDraw.Draw(mask_image).polygon(pixels(points), fill=1)
        mask = np.asarray(mask_image).astype(bool)
        labels[mask & (labels == _BACK) if inside else mask] = part
        if part == _WING:
            _quills(labels, mask, pixels, points, scale, side)
    return labels


def _quills(labels: np.ndarray, wing: np.ndarray, pixels: _Pixels, points: np.ndarray, scale: float, side: int) -> None:
    """Two feather lines, drawn into `labels` in place: they make the teardrop read as a wing."""
    image = Image.new("L", labels.shape, 0)
    draw = ImageDraw.Draw(image)
    count = len(points) // 2
    upper, lower = points[:count], points[count:][::-1]
    for share, start in ((0.38, 9), (0.70, 7)):
        line = upper[start : count - 3] * (1 - share) + lower[start : count - 3] * share
        draw.line(pixels(line), fill=1, width=max(round(0.012 * side * scale), 2))
    labels[np.asarray(image).astype(bool) & wing] = _QUILL


def _paint(labels: np.ndarray, values: Mapping[str, str], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Colours of all parts, (side, side, 3) float64 in 0..255; the backdrop's pixels are left without meaning."""
    fill = np.zeros((12, 3))
    names = {_TAIL: "back", _BACK: "back", _BREAST: "breast", _CROWN: "crown", _WING: "wings"}
    jitter = {name: rng.uniform(-9, 9, 3) for name in ("back", "breast", "crown", "wings", "bill")}
    for part, name in names.items():
        fill[part] = np.array(_RGB[values[name]]) + jitter[name]
    fill[_BILL] = np.array(_BILL_RGB[values["bill"]]) + jitter["bill"]
    fill[_PERCH] = np.array((122, 104, 88)) + rng.uniform(-12, 12)
    fill[_LEG], fill[_RING], fill[_PUPIL] = (150, 112, 74), (238, 236, 226), (12, 12, 14)
    # Outlines are darker than their part, but those of dark parts are lighter: black on dusk still has a shape.
    luminance = fill @ np.array([0.299, 0.587, 0.114])
    edge = np.where((luminance < 60)[:, None], fill + 74, fill * 0.52)
    fill[_QUILL] = edge[_WING]

    side = labels.shape[0]
    solid = np.where(labels == _QUILL, _WING, labels)
    reach = max(round(0.0088 * side * scale), 1)
    padded = np.pad(solid, reach, mode="edge")
    changed = np.zeros(labels.shape, bool)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        shifted = padded[reach + dy * reach :, reach + dx * reach :][:side, :side]
        changed |= shifted != solid
    changed &= np.isin(labels, _OUTLINED)
    colour = np.where(changed[..., None], edge[labels], fill[labels])

    # A little light from above.
    rows = np.flatnonzero((labels >= _TAIL).any(1))
    light = np.interp(np.arange(side), [rows[0], rows[-1]], [1.04, 0.93])
    return colour * light[:, None, None]


def _noise(rng: np.random.Generator, cells: tuple[int, int], side: int) -> np.ndarray:
    """Smooth noise, (side, side) float64, mean about 0, from a coarse grid of (rows, columns) cells."""
    grid = Image.fromarray(rng.normal(0.0, 1.0, cells).astype(np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)


def _backdrop(kind: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """A background, (side, side, 3) float64 in about 0..255."""
    down = np.linspace(0.0, 1.0, side)[:, None, None]

    def between(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> np.ndarray:
        return np.array(top) * (1 - down) + np.array(bottom) * down + np.zeros((side, side, 3))

    if kind == "sky":
        cloud = np.clip(_noise(rng, (6, 4), side) - 0.5, 0, 1)[..., None] * 0.45
        return between((126, 192, 240), (176, 220, 246)) * (1 - cloud) + 250 * cloud
    if kind == "leaves":
        image = Image.new("RGB", (side, side), (24, 58, 34))
        draw = ImageDraw.Draw(image)
        for _ in range(70):
            x, y, angle = rng.uniform(-0.05, 1.05) * side, rng.uniform(-0.05, 1.05) * side, rng.uniform(0, math.pi)
            length, shade = rng.uniform(0.05, 0.10) * side, rng.uniform(-0.45, 1.0)
            leaf = _ellipse(np.array([x, y]), (length, 0.45 * length), float(angle))
            fill = (int(30 + 12 * shade), int(74 + 26 * shade), int(40 + 10 * shade))
            draw.polygon([(float(px), float(py)) for px, py in leaf], fill=fill)
        return np.asarray(image.filter(ImageFilter.GaussianBlur(side / 170)), dtype=np.float64)
    if kind == "sand":
        ripple = 5.0 * _noise(rng, (18, 3), side) + 4.0 * _noise(rng, (side // 4, side // 4), side)
        return between((222, 192, 142), (206, 172, 120)) + ripple[..., None]
    if kind == "snow":
        drift = 3.0 * _noise(rng, (5, 3), side)
        image = Image.fromarray(
            np.clip(between((208, 216, 226), (228, 232, 238)) + drift[..., None], 0, 255).astype(np.uint8)
        )
        draw = ImageDraw.Draw(image)
        for _ in range(26):
            x, y, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.008, 0.014) * side
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(252, 253, 255))
        return np.asarray(image, dtype=np.float64)
    glow = 5.0 * _noise(rng, (6, 3), side)
    backdrop = between((34, 32, 78), (92, 68, 122)) + glow[..., None]
    for _ in range(9):
        x, y, half = rng.integers(0, side), rng.integers(0, side // 2), max(side // 128, 1)
        backdrop[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = (206, 204, 226)
    return backdrop


# ---------------------------------------------------------------------------------------------------------------------
# Sentences
# ---------------------------------------------------------------------------------------------------------------------

# Nouns for each part. The tail has the back's colour, so naming it names the back.
NOUNS = {
    "crown": ("crown", "crown", "cap"),
    "back": ("back", "back", "tail"),
    "wings": ("wings",),
    "breast": ("breast", "belly", "chest"),
    "bill": ("bill", "beak"),
}
# Words for the values whose word is not the value itself: entry k of one value matches entry k of the other.
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
PLUMAGE = ("crown", "back", "wings", "breast")
_WEIGHTS = {
    "crown": 4.0,
    "back": 3.5,
    "wings": 4.0,
    "breast": 4.0,
    "bill": 2.0,
    "bill_length": 1.5,
    "size": 2.0,
    "background": 1.5,
}
# The background nouns carry no colour word ("green leaves"): a colour in a caption always belongs to the bird.
_BEHIND = ("in front of the {}", "against the {}", "with the {} behind it", "and you see the {} behind it")
_POSTURES = ("perched in front of the {}", "sitting on a branch in front of the {}", "resting before the {}")


_MOST_WORDS = 18


def _search(attribute: str) -> re.Pattern[str]:
    """Finds an attribute's value word in a caption: the word stands in group "before" or "after" its noun."""
    if attribute == "size":
        words = "|".join(word for value in _SIZE_WORDS.values() for word in value)
        return re.compile(rf"\b(?P<before>{words})\b")
    if attribute == "background":
        return re.compile(rf"\bthe (?P<before>{'|'.join(ATTRIBUTES['background'])})\b")
    words = "|".join(ATTRIBUTES[attribute])
    if attribute == "bill_length":
        return re.compile(rf"\b(?P<before>{words})(?: (?:{'|'.join(ATTRIBUTES['bill'])}))? (?:bill|beak)\b")
    nouns = "|".join(dict.fromkeys(NOUNS[attribute]))
    link = r"(?: that| of this(?: \w+)? bird)? (?:is|are)"
    return re.compile(rf"\b(?P<before>{words}) (?:{nouns})\b|\b(?:{nouns}){link} (?P<after>{words})\b")


_SEARCHES = {name: _search(name) for name in ATTRIBUTES}


def draw_named(rng: random.Random) -> tuple[str, ...]:
    """Draws which attributes a sentence names: 2 to 5 of the eight, at least one of crown, back, wings, breast.

    Returns:
        The names in the order of `ATTRIBUTES`.
    """
    count = rng.choices((2, 3, 4, 5), (3, 4, 3, 1.5))[0]
    while True:
        # Weighted draw without replacement: the largest of u ** (1 / weight).
        keys = {name: rng.random() ** (1 / weight) for name, weight in _WEIGHTS.items()}
        chosen = set(sorted(keys, key=lambda name: -keys[name])[:count])
        if chosen & set(PLUMAGE):
            return tuple(name for name in ATTRIBUTES if name in chosen)


def sentence(values: Mapping[str, str], wording: int) -> str:
    """The English sentence that names these attributes, and no others.

    It is a pure function; `wording` picks template, order and synonyms without a look at the values. So two calls that
    differ in one value differ in that value's word and in nothing else.

    Args:
        values: named attribute -> value; at least one of crown, back, wings, breast, bill, bill_length.
        wording: any integer.

    Returns:
        One lower-case sentence that ends in a full stop.

    Raises:
        ValueError: an unknown attribute or value, or no part of the bird is named.
    """
    unknown = [name for name in values if name not in ATTRIBUTES]
    if unknown:
        raise ValueError(f"values: expected attributes among {', '.join(ATTRIBUTES)}, got {unknown[0]!r}")
    for name in values:
        _value_index(values, name)
    named = [name for name in ATTRIBUTES if name in values]
    parts = [name for name in named if name in PLUMAGE]
    if "bill" in values or "bill_length" in values:
        parts.append("bill")
    if not parts:
        raise ValueError(
            f"values: expected at least one part of the bird (crown, bill, ...), got only {', '.join(named)}"
        )
    rng = random.Random(wording)
    rng.shuffle(parts)

    # "a crown that is red" is long: at most once, and only in short sentences.
    spread = rng.choice(parts) if len(named) <= 3 and rng.random() < 0.25 else None
    nouns = {name: rng.choice(NOUNS[name]) for name in parts}
    size_choice = rng.randrange(2)

    def adjectives(name: str) -> str:
        if name != "bill":
            return values[name]
        return " ".join(values[key] for key in ("bill_length", "bill") if key in values)

    def has(name: str) -> str:
        article = "" if name == "wings" else "a "
        if name == spread and name != "bill":
            return f"{article}{nouns[name]} that {'are' if name == 'wings' else 'is'} {values[name]}"
        return f"{article}{adjectives(name)} {nouns[name]}"

    def listing(words: list[str]) -> str:
        return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]

    size = _SIZE_WORDS[values["size"]][size_choice] + " " if "size" in values else ""
    things = listing([has(name) for name in parts])
    first, others = parts[0], parts[1:]
    forms = [
        f"this is a {size}bird with {things}",
        f"a {size}bird with {things}",
        f"this {size}bird has {things}",
        f"the {size}bird has {things}",
        f"a {size}bird that has {things}",
        f"this {size}bird shows {things}",
        f"here is a {size}bird which has {things}",
        f"a photo of a {size}bird with {things}",
        f"you can see {things} on this {size}bird",
    ]
    if first != "bill" and others and spread is None and len(named) <= 4:
        rest = listing([has(name) for name in others])
        verb = "are" if first == "wings" else "is"
        forms.append(f"the {nouns[first]} of this {size}bird {verb} {values[first]} and it has {rest}")
        forms.append(f"this {size}bird has {rest} and its {nouns[first]} {verb} {values[first]}")
    if "background" in values:
        starts = ("this is a", "a", "there is a")
        postures = [f"{start} {size}bird {posture} with {things}" for start in starts for posture in _POSTURES]
        forms = [f"{form} {behind}" for form in forms for behind in _BEHIND] + postures
        forms = [form.format(values["background"]) for form in forms]
    # Every value is one word, so the length does not depend on the values either.
    shortest = min(len(form.split()) for form in forms)
    text = rng.choice([form for form in forms if len(form.split()) <= max(_MOST_WORDS, shortest)])
    return text + "."


def read_caption(caption: str) -> dict[str, str]:
    """The attributes that a sentence made here names, with their values, in the order of `ATTRIBUTES`."""
    found = {}
    for name in ATTRIBUTES:
        span = _find(caption, name)
        if span is not None:
            word = caption[span[0] : span[1]]
            found[name] = word
            if name == "size":
                found[name] = next(value for value, words in _SIZE_WORDS.items() if word in words)
    return found


def said_by(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What sentences made here claim, as tensors.

    Args:
        captions: B sentences, true or not.

    Returns:
        (B, A) int64 value indices (0 where an attribute is not named), and (B, A) bool, True where it is named;
        attributes in the order of `ATTRIBUTES`.
    """
    values = torch.zeros(len(captions), len(ATTRIBUTES), dtype=torch.long)
    named = torch.zeros(len(captions), len(ATTRIBUTES), dtype=torch.bool)
    columns = {name: column for column, name in enumerate(ATTRIBUTES)}
    for row, caption in enumerate(captions):
        for name, value in read_caption(caption).items():
            values[row, columns[name]] = ATTRIBUTES[name].index(value)
            named[row, columns[name]] = True
    return values, named


def _find(caption: str, attribute: str) -> tuple[int, int] | None:
    match = _SEARCHES[attribute].search(caption)
    return None if match is None else match.span(match.lastgroup or 0)


def swap_caption(caption: str, named: Sequence[str], values: Mapping[str, str], rng: random.Random) -> tuple[str, str]:
    """Exchanges exactly one named value of a sentence for another value of the same attribute.

    The value's word is found beside its noun, so it works when two parts share a colour.

    Args:
        caption: a sentence made by `sentence`, from disk or not.
        named: the attributes it names.
        values: the values it gives them (more attributes do no harm: a picture's values will do).
        rng: picks the attribute and its new value.

    Returns:
        The sentence with one value exchanged, and the attribute that was exchanged.

    Raises:
        ValueError: nothing is named, or the caption does not say what `named` and `values` claim.
    """
    if not named:
        raise ValueError("named: expected at least one attribute, got none")
    said = read_caption(caption)
    for name in named:
        if name not in ATTRIBUTES:
            raise ValueError(f"named: expected attributes among {', '.join(ATTRIBUTES)}, got {name!r}")
        if said.get(name) != values.get(name):
            raise ValueError(
                f"caption: expected {name} = {values.get(name)!r} in {caption!r}, found {said.get(name)!r}"
            )
    attribute = rng.choice([name for name in ATTRIBUTES if name in named])
    value = rng.choice([value for value in ATTRIBUTES[attribute] if value != values[attribute]])
    span = _find(caption, attribute)
    assert span is not None  # `said` has it
    word = value
    if attribute == "size":
        word = _SIZE_WORDS[value][_SIZE_WORDS[values["size"]].index(caption[slice(*span)])]
    return caption[: span[0]] + word + caption[span[1] :], attribute


def swap_word(values: Mapping[str, str], named: Sequence[str], rng: random.Random | int) -> tuple[str, str, str]:
    """A true sentence about a picture and its twin that is false in one word.

    Args:
        values: the picture's attributes.
        named: the attributes to name, at least one part of the bird among them.
        rng: a generator, or a seed for one.

    Returns:
        The true sentence, the same sentence with one value exchanged, and the attribute that was exchanged.

    Raises:
        ValueError: as `sentence`.
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    true = sentence({name: values.get(name, "") for name in named}, rng.getrandbits(32))
    false, attribute = swap_caption(true, named, values, rng)
    return true, false, attribute


# ---------------------------------------------------------------------------------------------------------------------
# The folder on disk
# ---------------------------------------------------------------------------------------------------------------------


class Bird(NamedTuple):
    """One picture to be: everything `make_birds` writes about it follows from this."""

    key: str
    class_id: int
    values: dict[str, str]
    captions: tuple[str, ...]
    named: tuple[tuple[str, ...], ...]
    seed: int


def plan_birds(split: str, count: int, seed: int = 0) -> list[Bird]:
    """The pictures of a split, undrawn: `draw_bird(bird.values, size, bird.seed)` draws one.

    The first pictures of a large split are those of a small one.

    Args:
        split: "train", "validation" or "test".
        count: number of pictures, 0 or more; there are ten to a class.
        seed: picks classes, poses and sentences.

    Raises:
        ValueError: an unknown split, a negative count, or more pictures than the split has classes for.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    # About 39,000, 4,900 and 4,900 classes exist; the bound leaves the random draw of classes quick.
    limit = PICTURES_PER_CLASS * (30_000 if split == "train" else 4_000)
    if not 0 <= count <= limit:
        raise ValueError(f"{split}: expected 0 to {limit} pictures, got {count}")
    birds = []
    for number in _classes(split, math.ceil(count / PICTURES_PER_CLASS), seed):
        species = class_values(number)
        name = f"{species['crown'].title()}_crowned_{species['wings'].title()}_winged"
        rng = random.Random(f"birds/class/{seed}/{number}")
        # Every background comes up twice among the ten pictures: no class can be told from its background.
        backgrounds = list(ATTRIBUTES["background"]) * (PICTURES_PER_CLASS // len(ATTRIBUTES["background"]))
        rng.shuffle(backgrounds)
        for index, background in enumerate(backgrounds[: count - len(birds)]):
            values = {**species, "background": background}
            sentences: dict[str, tuple[str, ...]] = {}
            while len(sentences) < CAPTIONS_PER_PICTURE:
                named = draw_named(rng)
                sentences.setdefault(sentence({key: values[key] for key in named}, rng.getrandbits(32)), named)
            birds.append(
                Bird(
                    key=f"{number:05d}.{name}/{name}_{number:05d}_{index:02d}",
                    class_id=number,
                    values=values,
                    captions=tuple(sentences),
                    named=tuple(sentences.values()),
                    seed=rng.getrandbits(63),
                )
            )
    return birds


def make_birds(
    root: str | Path,
    train: int,
    validation: int,
    test: int,
    size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Writes a set of synthetic birds in the layout that AttnGAN's users have for CUB-200-2011.

    Everything goes into a temporary folder beside `root` that is renamed at the end, so a killed run leaves no
    half-made set. If `root` already holds the complete set for the same arguments, nothing is done.

    Args:
        root: the folder to make; it may exist if it is empty.
        train, validation, test: number of pictures of each split.
        size: side of the pictures in pixels, at least 16.
        seed: picks classes, poses and sentences; equal arguments give equal bytes on one machine.
        progress: shows a counter on standard error.

    Returns:
        `root` as a path.

    Raises:
        ValueError: a bad count or size, or `root` holds anything else.
    """
    root = Path(root)
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    counts = {"train": train, "validation": validation, "test": test}
    arguments = {"version": _VERSION, **counts, "size": size, "seed": seed}
    if _already_made(root, arguments):
        return root
    plans = {split: plan_birds(split, count, seed) for split, count in counts.items()}
    if not any(plans.values()):
        raise ValueError("train, validation, test: expected at least one picture in all, got 0")

    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.parent / f".{root.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    try:
        _write_set(partial, plans, size, arguments, progress)
        if root.is_dir():
            root.rmdir()  # empty, or it would have been refused; fails if somebody filled it meanwhile
        partial.rename(root)
    except OSError:
        # Two processes (the ranks of one job, say) may make the same set at once: the second finds it made.
        if not _already_made(root, arguments):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _already_made(root: Path, arguments: Mapping[str, int]) -> bool:
    """Whether `root` holds this very set; False if it is absent or empty."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder to write the birds into, got a file")
    if not any(root.iterdir()):
        return False
    marker = root / _ARGUMENTS_FILE
    if not marker.is_file():
        raise ValueError(
            f"{root}: expected an empty or absent folder, got one with other files and no {_ARGUMENTS_FILE}"
        )
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        keys = list(json.loads((root / "attributes.json").read_text(encoding="utf-8"))["pictures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{root}: expected a complete set of birds, got one that cannot be read ({error})") from error
    if found != dict(arguments):
        raise ValueError(f"{root}: expected the birds made with {dict(arguments)}, got those made with {found}")
    files = [root / f"CUB_200_2011/images/{key}.jpg" for key in keys] + [root / f"text/{key}.txt" for key in keys]
    splits = [split for split in SPLITS if arguments[split]]
    files += [root / split / name for split in splits for name in ("filenames.pickle", "class_info.pickle")]
    files += [root / "CUB_200_2011" / name for name in ("images.txt", "bounding_boxes.txt")]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ValueError(f"{root}: expected a complete set of birds, got one without {missing}")
    return True


def _write_set(
    root: Path, plans: Mapping[str, Sequence[Bird]], size: int, arguments: Mapping[str, int], progress: bool
) -> None:
    birds = [bird for plan in plans.values() for bird in plan]
    for folder in dict.fromkeys(bird.key.split("/")[0] for bird in birds):
        (root / "CUB_200_2011/images" / folder).mkdir(parents=True)
        (root / "text" / folder).mkdir(parents=True)
    for done, bird in enumerate(birds, 1):
        draw_bird(bird.values, size, bird.seed).save(
            root / f"CUB_200_2011/images/{bird.key}.jpg", quality=95, subsampling=0
        )
        (root / f"text/{bird.key}.txt").write_text("\n".join(bird.captions) + "\n", encoding="utf-8", newline="\n")
        if progress and (done % 50 == 0 or done == len(birds)):
            print(
                f"\rbirds: {done} of {len(birds)}", end="\n" if done == len(birds) else "", file=sys.stderr, flush=True
            )
    lines = [f"{number} {bird.key}.jpg\n" for number, bird in enumerate(birds, 1)]
    (root / "CUB_200_2011/images.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    # The box is the whole picture: readers crop to the box, and a tight one would normalise the attribute "size" away.
    lines = [f"{number} 0.0 0.0 {float(size)} {float(size)}\n" for number in range(1, len(birds) + 1)]
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    for split, plan in plans.items():
        if not plan:
            continue
        (root / split).mkdir()
        _write_pickle(root / split / "filenames.pickle", [bird.key for bird in plan])
        _write_pickle(root / split / "class_info.pickle", [bird.class_id for bird in plan])
    truth = {
        "attributes": {name: list(choices) for name, choices in ATTRIBUTES.items()},
        "pictures": {bird.key: bird.values for bird in birds},
        "captions": {bird.key: [list(named) for named in bird.named] for bird in birds},
    }
    (root / "attributes.json").write_text(json.dumps(truth) + "\n", encoding="utf-8", newline="\n")
    (root / _ARGUMENTS_FILE).write_text(json.dumps(dict(arguments)) + "\n", encoding="utf-8", newline="\n")


def _write_pickle(path: Path, content: list[Any]) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))  # the original repositories' Python 2 reads protocol 2


# ---------------------------------------------------------------------------------------------------------------------
# The truth, read back
# ---------------------------------------------------------------------------------------------------------------------


class BirdTruth:
    """The attributes of a set of birds, read from its attributes.json.

    Args:
        path: the set's folder, or its attributes.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not what `make_birds` writes.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / "attributes.json" if path.is_dir() else path
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path}: expected the attributes of a set of synthetic birds, found no such file"
            )
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.attributes = {name: tuple(choices) for name, choices in content["attributes"].items()}
            self.names = tuple(self.attributes)
            index = {name: {value: i for i, value in enumerate(choices)} for name, choices in self.attributes.items()}
            self._values = {
                key: [index[name][values[name]] for name in self.names] for key, values in content["pictures"].items()
            }
            self._named = {
                key: [[name in set(named) for name in self.names] for named in captions]
                for key, captions in content["captions"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path}: expected attributes, pictures and captions as make_birds writes them, got {error!r}"
            ) from error

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def values(self, key: str) -> dict[str, str]:
        """A picture's attributes by name."""
        row = self._look_up(self._values, key)
        return {name: self.attributes[name][index] for name, index in zip(self.names, row, strict=True)}

    def names_in(self, key: str, caption_index: int) -> tuple[str, ...]:
        """The attributes that a picture's caption names."""
        return tuple(name for name, flag in zip(self.names, self._caption(key, caption_index), strict=True) if flag)

    def pictures(self, keys: Sequence[str]) -> Tensor:
        """Value indices of pictures, (B, A) int64; column a counts into `attributes[names[a]]`."""
        rows = [self._look_up(self._values, key) for key in keys]
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(self.names))

    def named(self, keys: Sequence[str], caption_indices: Sequence[int] | Tensor) -> Tensor:
        """Which attributes captions name, (B, A) bool; `caption_indices` (B,) number each picture's own captions.

        Raises:
            ValueError: an unknown picture or caption number, or lengths that differ.
        """
        numbers = [int(number) for number in caption_indices]
        if len(numbers) != len(keys):
            raise ValueError(f"caption_indices: expected one per key ({len(keys)}), got {len(numbers)}")
        rows = [self._caption(key, number) for key, number in zip(keys, numbers, strict=True)]
        return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), len(self.names))

    def _caption(self, key: str, number: int) -> list[bool]:
        captions = self._look_up(self._named, key)
        if not 0 <= number < len(captions):
            raise ValueError(f"caption_indices: expected 0 to {len(captions) - 1} for {key}, got {number}")
        return captions[number]

    def _look_up(self, table: Mapping[str, _Entry], key: str) -> _Entry:
        if key not in table:
            raise ValueError(f"keys: expected pictures of {self.path}, got {key!r}")
        return table[key]


def true_pairs(values: Tensor, anchor_values: Tensor, anchor_named: Tensor) -> Tensor:
    """Which pictures satisfy which captions.

    Args:
        values: the pictures' value indices, (B, A) int64.
        anchor_values: value indices of the pictures that the captions describe, (B', A) int64.
        anchor_named: which attributes each caption names, (B', A) bool.

    Returns:
        (B, B') bool: True where picture i agrees with caption j on everything that caption j names.

    Raises:
        ValueError: the shapes do not fit.
    """
    if values.ndim != 2 or anchor_values.ndim != 2 or values.shape[1] != anchor_values.shape[1]:
        raise ValueError(
            "values, anchor_values: expected (B, A) and (B', A), "
            f"got {tuple(values.shape)} and {tuple(anchor_values.shape)}"
        )
    if anchor_named.shape != anchor_values.shape or anchor_named.dtype != torch.bool:
        raise ValueError(
            f"anchor_named: expected bool of shape {tuple(anchor_values.shape)}, "
            f"got {anchor_named.dtype} of shape {tuple(anchor_named.shape)}"
        )
    agree = values[:, None, :] == anchor_values[None, :, :]
    return (agree | ~anchor_named[None, :, :]).all(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Contact sheet
# ---------------------------------------------------------------------------------------------------------------------


def contact_sheet(
    pictures: Sequence[Any], captions: Sequence[str], columns: int, path: str | Path, width: int = 192
) -> Path:
    """Writes a PNG of enlarged pictures with their captions beneath.

    Args:
        pictures: paths, PIL pictures, or records with a field `image`.
        captions: one text for each picture.
        columns: pictures in a row.
        path: the file to write.
        width: width of a picture on the sheet, in pixels.

    Returns:
        `path` as a path.

    Raises:
        ValueError: no picture, fewer than one column, or not one caption each.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(
            f"captions: expected one for each of at least one picture, got {len(captions)} for {len(pictures)}"
        )
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    font = ImageFont.load_default(size=12)
    line_height = sum(font.getbbox("bg")[1::2])
    letters = max(int((width - 8) / (font.getlength("the quick brown fox") / 19)), 8)
    wrapped = [textwrap.wrap(caption, letters) for caption in captions]
    height = width + 8 + line_height * max(max(len(lines) for lines in wrapped), 1)
    gap = 6
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + row * (height + gap)
        picture = getattr(picture, "image", picture)
        if not isinstance(picture, Image.Image):
            with Image.open(picture) as file:
                picture = file.convert("RGB")
        sheet.paste(picture.convert("RGB").resize((width, width), Image.Resampling.BICUBIC), (x, y))
        for index, line in enumerate(lines):
            draw.text((x + 2, y + width + 4 + index * line_height), line, fill="black", font=font)
    path = Path(path)
    sheet.save(path)
    return path
