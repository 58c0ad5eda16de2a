"""Sheets and curves: their sizes, and that each pixel is where its caption, word or weight belongs."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from fill import wave
from PIL import Image
from torch import Tensor

from vlm_plugin import TERMS, VLM
from vlm_plugin.data.images import to_image
from vlm_plugin.matcher.vocabulary import MAX_WORDS
from vlm_plugin.matching import context_cosines, region_attention
from vlm_plugin.report.sheets import Heats, attention_sheet, heat_sheet, loss_curves, sample_sheet

TILE, GAP, TEXT, HEADER, LINE = 96, 4, 250, 26, 18
WHITE = (255, 255, 255)


def flat(*levels: float, side: int = 8) -> Tensor:
    """(K, 3, S, S), one grey each."""
    return torch.stack([torch.full((3, side, side), level) for level in levels])


def grey(level: float) -> tuple[int, int, int]:
    return (round((level + 1) * 127.5),) * 3


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        assert image.mode == "RGB"
        return image


# ------------------------------------------------------------------------------------------------------------- images


def test_values_become_pixels() -> None:
    picture = torch.zeros(3, 2, 2)
    picture[:, 0, 0] = torch.tensor([-1.0, 1.0, 0.2])
    picture[:, 0, 1] = torch.tensor([-1.5, 7.0, -0.2])
    picture[:, 1, 0] = torch.tensor([-0.999, 0.999, 0.0])
    image = to_image(picture.requires_grad_())
    assert image.getpixel((0, 0)) == (0, 255, 153)
    assert image.getpixel((1, 0)) == (0, 255, 102)
    assert image.getpixel((0, 1)) == (0, 255, 128)
    assert to_image(picture.half()).getpixel((0, 0)) == (0, 255, 153)
    assert to_image(picture, 10).size == (10, 10)


# ------------------------------------------------------------------------------------------------------------- sheets


def test_every_picture_is_in_its_captions_row_and_its_groups_column(tmp_path: Path) -> None:
    columns = {
        "real": [flat(-0.9), flat(-0.7)],
        "before": [flat(-0.5, -0.3, -0.1), flat(0.1, 0.3, 0.5)],
        "after": [flat(0.7, 0.6), flat(0.9, 1.0)],
    }
    sample_sheet(tmp_path / "sheet.png", ["a bird", "a red bird"], columns)
    sheet = opened(tmp_path / "sheet.png")
    assert sheet.size == (TEXT + 6 * (TILE + GAP) + 3 * 3 * GAP, HEADER + 2 * (TILE + GAP))
    left = TEXT
    for rows in columns.values():
        for number in range(len(rows[0])):
            for row in range(2):
                top, expected = HEADER + row * (TILE + GAP), grey(float(rows[row][number].mean()))
                for x, y in ((0, 0), (TILE - 1, 0), (0, TILE - 1), (TILE - 1, TILE - 1), (TILE // 2, TILE // 2)):
                    assert sheet.getpixel((left + x, top + y)) == expected
                assert sheet.getpixel((left + TILE, top)) == WHITE
            left += TILE + GAP
        left += 3 * GAP


@pytest.mark.parametrize(("side", "tile"), [(64, 96), (128, 128), (256, 160)])
def test_large_pictures_are_shown_larger(tmp_path: Path, side: int, tile: int) -> None:
    sample_sheet(tmp_path / "sheet.png", ["a bird"] * 2, {"": [flat(-0.5, 0.5, side=side)] * 2})
    sheet = opened(tmp_path / "sheet.png")
    assert sheet.size == (TEXT + 2 * (tile + GAP) + 3 * GAP, HEADER + 2 * (tile + GAP))
    left, top = TEXT + tile + GAP, HEADER + tile + GAP
    for x, y in ((0, 0), (tile - 1, tile - 1)):
        assert sheet.getpixel((left + x, top + y)) == grey(0.5)


def dark(image: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Something is written in the box."""
    return image.crop(box).convert("L").getextrema()[0] < 128


def text_boxes(rows: int) -> list[tuple[int, int, int, int]]:
    tops = [HEADER + row * (TILE + GAP) for row in range(rows)]
    return [(0, top, TEXT, top + TILE + GAP) for top in tops]


@pytest.mark.parametrize("caption", ["a small red bird with black wings " * 20, "red" * 300, "a bird\n" * 40])
def test_a_long_caption_stays_in_its_row_and_beside_the_pictures(tmp_path: Path, caption: str) -> None:
    captions, path = ["", caption, ""], tmp_path / "sheet.png"
    sample_sheet(path, captions, {"": [flat(1.0)] * 3})
    sheet = opened(path)
    assert [dark(sheet, box) for box in text_boxes(3)] == [False, True, False]
    assert sheet.crop((TEXT, 0, *sheet.size)).convert("L").getextrema() == (255, 255)


def test_headers_stand_above_their_groups(tmp_path: Path) -> None:
    for name, expected in (("first", [True, False]), ("second", [False, True])):
        columns = {"first": [flat(1.0, 1.0)], "second": [flat(1.0, 1.0)]}
        columns = {key if key == name else " " * len(key): value for key, value in columns.items()}
        sample_sheet(tmp_path / "sheet.png", [""], columns)
        sheet = opened(tmp_path / "sheet.png")
        width = 2 * (TILE + GAP) + 3 * GAP
        boxes = [(TEXT + n * width, 0, TEXT + (n + 1) * width, HEADER) for n in range(2)]
        assert [dark(sheet, box) for box in boxes] == expected


# -------------------------------------------------------------------------------------------------------------- heats


def spot(row: int, column: int, height: int, width: int) -> Tensor:
    weights = torch.full((height, width), 0.01)
    weights[row, column] = 0.3
    return weights


def test_a_tile_is_bright_where_the_weight_is(tmp_path: Path) -> None:
    """Rows and columns are not confused, whatever the grid; below a fifth of the picture is left."""
    places = [(0, 0), (0, 3), (1, 0), (1, 2)]
    first = Heats("a red bird", flat(1.0)[0], [(f"w{n}", spot(*place, 2, 4)) for n, place in enumerate(places)])
    second = Heats("a bird", flat(0.2)[0], [("w", spot(2, 1, 3, 3))])
    heat_sheet(tmp_path / "heats.png", [first, second])
    sheet, height = opened(tmp_path / "heats.png"), TILE + 2 * LINE + GAP
    assert sheet.size == (5 * (TILE + GAP), 2 * height)
    for row, (title, picture, words) in enumerate((first, second)):
        top, level = row * height + 2 * LINE, grey(float(picture.mean()))
        assert title
        for y in (0, TILE - 1):
            for x in (0, TILE - 1):
                assert sheet.getpixel((x, top + y)) == level
        for number, (_, weights) in enumerate(words, start=1):
            rows, columns = weights.shape
            for r in range(rows):
                for c in range(columns):
                    x = number * (TILE + GAP) + (2 * c + 1) * TILE // (2 * columns)
                    y = top + (2 * r + 1) * TILE // (2 * rows)
                    value = sheet.getpixel((x, y))[0]
                    if weights[r, c] > 0.1:
                        assert value > 0.9 * level[0]
                    else:
                        assert value < 0.3 * level[0]
    # Beside the second row's one word there is nothing.
    assert sheet.crop((2 * (TILE + GAP), height + LINE, *sheet.size)).convert("L").getextrema() == (255, 255)


def test_labels_stand_above_their_tiles(tmp_path: Path) -> None:
    words = [(label, torch.ones(2, 2)) for label in ("", "red", "", "bird")]
    heat_sheet(tmp_path / "heats.png", [("", flat(1.0)[0], words)])
    sheet = opened(tmp_path / "heats.png")
    boxes = [(n * (TILE + GAP), LINE, (n + 1) * (TILE + GAP), 2 * LINE) for n in range(5)]
    assert [dark(sheet, box) for box in boxes] == [False, False, True, False, True]
    heat_sheet(tmp_path / "heats.png", [("a red bird", flat(1.0)[0], words)])
    assert dark(opened(tmp_path / "heats.png"), (0, 0, 100, LINE))


def test_most_words_of_a_row(tmp_path: Path) -> None:
    words = [(f"w{n}", torch.eye(4)) for n in range(25)]
    rows = [("many", flat(0.0)[0], words), ("few", flat(0.0)[0], words[:2])]
    heat_sheet(tmp_path / "heats.png", rows)
    # As many as a matcher keeps of a caption.
    assert opened(tmp_path / "heats.png").width == (MAX_WORDS + 1) * (TILE + GAP)
    heat_sheet(tmp_path / "heats.png", rows, most=5)
    assert opened(tmp_path / "heats.png").width == 6 * (TILE + GAP)
    heat_sheet(tmp_path / "heats.png", rows[1:])
    assert opened(tmp_path / "heats.png").width == 3 * (TILE + GAP)


def test_where_the_matcher_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a picture, with the attention of its own caption's words, and how well each fits."""
    vlm, images = VLM.load(tiny.matcher()), wave(2, 3, 32, 32, scale=0.8)
    captions = ["a small red bird with black wings", "a blue bird"]
    attention_sheet(tmp_path / "attention.png", vlm, images, captions)
    assert opened(tmp_path / "attention.png").size == (8 * (TILE + GAP), 2 * (TILE + 2 * LINE + GAP))
    seen = []
    monkeypatch.setattr("vlm_plugin.report.sheets.heat_sheet", lambda path, rows: seen.extend(rows))
    attention_sheet(tmp_path / "attention.png", vlm, images, captions)
    with torch.no_grad():
        image, text = vlm.encode_image(images), vlm.encode_text(captions)
    attention, cosines = region_attention(image, text), context_cosines(image, text)
    assert [row.title for row in seen] == captions
    for i, (caption, row) in enumerate(zip(captions, seen, strict=True)):
        assert torch.equal(row.picture, images[i])
        assert len(row.words) == len(caption.split())
        for j, (word, (label, heat)) in enumerate(zip(caption.split(), row.words, strict=True)):
            assert label == f"{word} {float(cosines[i, i, j]):.2f}"
            assert heat.shape == tuple(vlm.image_encoder.grid)
            torch.testing.assert_close(heat.sum(), torch.tensor(1.0))
            torch.testing.assert_close(heat.flatten(), attention[i, i, j])


# ------------------------------------------------------------------------------------------------------------- curves

DFGAN_PLAIN = {"discriminator": 2.0, "generator": -0.5, "penalty": 0.1}
ATTNGAN_PLAIN = {
    "discriminator": 3.0, "generator": 1.5, "kl": 0.2, "damsm_w0": 4.0, "damsm_w1": 4.1, "damsm_s0": 4.2,
    "damsm_s1": 4.3,
}  # fmt: skip
DUAL = {"discriminator": 3.0, "generator": 1.5, "kl": 0.2, "lambda_vvm": 0.1, "lambda_vlm": 0.4}
DUAL |= {term: 2.0 + n for n, term in enumerate(TERMS)} | {f"floor_{term}": 1.0 + n for n, term in enumerate(TERMS)}
VLM_TERMS, VVM_TERMS = ([term for term in TERMS if term.startswith(half)] for half in ("vlm_", "vvm_"))
PANELS = {
    "adversarial": ["discriminator", "generator", "kl"],
    "fake image and its caption (dashed: real pairs)": VLM_TERMS,
    "fake image and real image (dashed: real pairs)": VVM_TERMS,
}


def rows_of(values: dict[str, float]) -> list[dict[str, float]]:
    """Three lines of a log, from which no two names take the same values."""
    return [{"step": step, **{name: value * (1 + step / 40) for name, value in values.items()}} for step in (0, 20, 40)]


@pytest.mark.parametrize(
    ("values", "panels"),
    [
        (DFGAN_PLAIN, {"adversarial": ["discriminator", "generator", "penalty"]}),
        (ATTNGAN_PLAIN, {"adversarial": PANELS["adversarial"], "DAMSM": list(ATTNGAN_PLAIN)[3:]}),
        (DUAL, PANELS),
        ({k: v for k, v in DUAL.items() if not k.split("_", 1)[-1].startswith("vvm")}, dict(list(PANELS.items())[:2])),
    ],
    ids=["dfgan", "attngan", "dual", "one half"],
)  # fmt: skip
def test_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, float], panels: dict[str, list[str]]
) -> None:
    from matplotlib import pyplot

    figures, close = [], pyplot.close
    monkeypatch.setattr(pyplot, "close", lambda figure: (figures.append(figure), close(figure)))
    rows = rows_of(values)
    loss_curves(tmp_path / "curves.png", rows)
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        # Releases of matplotlib round to one side or the other.
        assert image.size == (pytest.approx(414 * len(panels), abs=1), 306)
    [figure] = figures
    assert pyplot.get_fignums() == []
    assert [axis.get_title() for axis in figure.axes] == list(panels)
    for axis, (title, names) in zip(figure.axes, panels.items(), strict=True):
        solid = {line.get_label(): line for line in axis.lines if line.get_linestyle() == "-"}
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert list(solid) == names
        assert [text.get_text() for text in axis.get_legend().get_texts()] == names
        for name, line in solid.items():
            assert list(line.get_xdata()) == [0, 20, 40]
            assert list(line.get_ydata()) == [row[name] for row in rows]
        floors = [name for name in names if f"floor_{name}" in values]
        assert len(dashed) == len(floors)
        for name, line in zip(floors, dashed, strict=True):
            assert list(line.get_ydata()) == [row[f"floor_{name}"] for row in rows]
            assert line.get_color() == solid[name].get_color()
        assert len({line.get_color() for line in solid.values()}) == len(names)
        assert (axis.get_ylim()[0] == 0) == (title != "adversarial")
