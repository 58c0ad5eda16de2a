"""Draws a synthetic bird with given attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlm_plugin.data.birds.attributes import ATTRIBUTES, value_index

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
        value_index(values, name)
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
