"""Crops against numbers worked out by hand, on a picture whose colour is its position."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vlm_plugin.data import CaptionedImages, Record, collate
from vlm_plugin.data.dataset import caption_id


@pytest.fixture
def gradient(tmp_path: Path) -> Path:
    """200 x 120 pixels; red is the column, green the row."""
    rows, columns = np.mgrid[0:120, 0:200]
    path = tmp_path / "gradient.png"
    Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)).save(path)
    return path


def record(path: Path, box: tuple[float, float, float, float] | None = None, class_id: int | None = 3) -> Record:
    return Record("a/b", path, ("first caption", "second caption", "third caption"), class_id, box)


def positions(image: Tensor) -> Tensor:
    """(3, S, S) in [-1, 1] back to columns and rows of the gradient, (2, S, S)."""
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    return (image[:2] + 1) * 127.5


def test_centre_crop_around_a_box(gradient: Path) -> None:
    # Centre (80, 40), half a side 0.75 * 40 = 30: columns 50 to 110, rows 10 to 70. Side 51 * 76 // 64 = 60, so nothing
    # is resized, and the centre crop leaves out (60 - 51) // 2 = 4.
    dataset = CaptionedImages([record(gradient, (60, 30, 40, 20))], 51, train=False)
    image = dataset[0].image
    assert image.shape == (3, 51, 51)
    columns, rows = positions(image)
    assert torch.allclose(columns, torch.arange(54.0, 105.0).expand(51, 51), atol=1e-3)
    assert torch.allclose(rows, torch.arange(14.0, 65.0)[:, None].expand(51, 51), atol=1e-3)
    assert torch.equal(image[2], torch.full((51, 51), -1.0))


def test_a_box_at_the_border_is_cut_off(gradient: Path) -> None:
    # Centre (20, 10), half a side 30: columns 0 to 50, rows 0 to 40. The shorter side 34 * 76 // 64 = 40 stays as it
    # is; the centre crop starts at column (50 - 34) // 2 = 8 and row (40 - 34) // 2 = 3.
    columns, rows = positions(CaptionedImages([record(gradient, (0, 0, 40, 20))], 34, train=False)[0].image)
    assert torch.allclose(columns[0], torch.arange(8.0, 42.0), atol=1e-3)
    assert torch.allclose(rows[:, 0], torch.arange(3.0, 37.0), atol=1e-3)


def test_without_a_box_the_shorter_side_is_resized(gradient: Path) -> None:
    # 120 rows become 32 * 76 // 64 = 38, 200 columns 63; the crop starts at column 15 and row 3.
    columns, rows = positions(CaptionedImages([record(gradient)], 32, train=False)[0].image)
    expected_columns = (torch.arange(32.0) + 15 + 0.5) * 200 / 63 - 0.5
    expected_rows = (torch.arange(32.0) + 3 + 0.5) * 120 / 38 - 0.5
    assert torch.allclose(columns[5], expected_columns, atol=0.6)
    assert torch.allclose(rows[:, 5], expected_rows, atol=0.6)


def test_training_draws_every_offset_both_sides_and_every_caption(gradient: Path) -> None:
    torch.manual_seed(0)
    dataset = CaptionedImages([record(gradient, (60, 30, 40, 20))], 51, train=True)
    lefts, tops, mirrored, captions = set(), set(), [], set()
    for _ in range(250):
        sample = dataset[0]
        columns, rows = positions(sample.image)
        step = float(columns[0, 1] - columns[0, 0])
        assert abs(step) == pytest.approx(1, abs=1e-3)
        mirrored.append(step < 0)
        lefts.add(round(float(columns.min())))
        tops.add(round(float(rows[0, 0])))
        assert sample.caption == dataset.records[0].captions[sample.caption_index]
        captions.add(sample.caption_index)
    assert lefts == set(range(50, 60))
    assert tops == set(range(10, 20))
    assert 80 < sum(mirrored) < 170
    assert captions == {0, 1, 2}


def test_flip_can_be_switched_off(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient, (60, 30, 40, 20))], 51, train=True, flip=False)
    assert all(
        float(columns[0, 1] - columns[0, 0]) > 0 for columns in (positions(dataset[0].image)[0] for _ in range(30))
    )


def test_randomness_is_torchs_own(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient, (60, 30, 40, 20))], 51, train=True)

    def draw(seed: int) -> list[tuple[int, float]]:
        torch.manual_seed(seed)
        random.seed(seed + 1)
        np.random.seed(seed + 2)
        state = random.getstate(), np.random.get_state()[2]
        drawn = [(sample.caption_index, float(sample.image[0, 0, 0])) for sample in (dataset[0] for _ in range(8))]
        assert (random.getstate(), np.random.get_state()[2]) == state
        return drawn

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_evaluation_is_deterministic_and_walks_through_the_captions(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient)] * 5, 16, train=False)
    assert [dataset[i].caption_index for i in range(5)] == [0, 1, 2, 0, 1]
    assert [sample.index for sample in dataset] == [0, 1, 2, 3, 4]
    assert torch.equal(dataset[1].image, dataset[1].image)
    with pytest.raises(IndexError, match="index: expected 0 to 4, got 5"):
        dataset[5]


def test_class_ids(gradient: Path) -> None:
    with_classes = CaptionedImages([record(gradient)], 16, train=False)
    assert with_classes[0].class_id == 3
    records = [record(gradient, class_id=None)] * 4
    without = CaptionedImages(records, 16, train=False)
    ids = [without[i].class_id for i in range(4)]
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3
    assert all(0 <= class_id < 2**63 for class_id in ids)
    assert caption_id("a bird") == 5705390755058958707  # the same in every process


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode).save(path)
    image = CaptionedImages([record(path)], 16, train=False)[0].image
    assert image.shape == (3, 16, 16)
    assert float(image.min()) > 0.95
    assert float(image.max()) <= 1.0


def test_a_batch(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient), record(gradient, class_id=8)], 16, train=False)
    (batch,) = DataLoader(dataset, batch_size=2, collate_fn=collate)
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.captions == ["first caption", "second caption"]
    assert batch.keys == ["a/b", "a/b"]
    for tensor, expected in ((batch.caption_indices, [0, 1]), (batch.class_ids, [3, 8]), (batch.indices, [0, 1])):
        assert tensor.dtype == torch.long
        assert tensor.tolist() == expected


def test_bad_pictures_are_named(gradient: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: expected a picture, found no such file"):
        CaptionedImages([record(tmp_path / "gone.jpg")], 16, train=False)[0]
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.jpg: expected a picture, but reading it failed"):
        CaptionedImages([record(tmp_path / "text.jpg")], 16, train=False)[0]
    (tmp_path / "half.png").write_bytes(gradient.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"half\.png: expected a picture, but reading it failed"):
        CaptionedImages([record(tmp_path / "half.png")], 16, train=False)[0]
    with pytest.raises(ValueError, match=r"gradient\.png: expected a bounding box inside its 200 x 120 pixels"):
        CaptionedImages([record(gradient, (500, 500, 10, 10))], 16, train=False)[0]


def test_bad_arguments(gradient: Path) -> None:
    with pytest.raises(ValueError, match="records: expected at least one picture"):
        CaptionedImages([], 16, train=True)
    with pytest.raises(ValueError, match="image_size: expected at least 1 pixel, got 0"):
        CaptionedImages([record(gradient)], 0, train=True)
    with pytest.raises(ValueError, match="records: expected at least one caption for a/b"):
        CaptionedImages([record(gradient)._replace(captions=())], 16, train=True)
