"""Crops against numbers worked out by hand, on a picture whose colour is its position."""

from __future__ import annotations

import itertools
import pickle
import random
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from vlm_plugin.data import CaptionedImages, Record, Records, collate, open_split
from vlm_plugin.data.dataset import Collate
from vlm_plugin.data.images import load_image
from vlm_plugin.data.records import BadSampleError, MissingPictureError
from vlm_plugin.files import caption_id
from vlm_plugin.matcher.vocabulary import Vocabulary


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
    assert all(sample.class_id is None for sample in without)
    batch = collate(list(without))
    assert batch.class_ids.dtype == torch.long
    ids = batch.class_ids.tolist()
    assert ids[0] == ids[3]  # equal captions: no negatives of each other
    assert len(set(ids)) == 3
    assert all(0 <= class_id < 2**63 for class_id in ids)
    assert caption_id("a bird") == 5705390755058958707  # the same in every process


def test_without_classes_rows_of_one_picture_are_one_group(gradient: Path) -> None:
    """As where a batch is larger than the split; over a shared caption two pictures' rows come together."""
    first = CaptionedImages([record(gradient, class_id=None)], 16, train=False)[0]

    def groups(*rows: tuple[int, str]) -> list[int]:
        batch = collate([first._replace(index=index, caption=caption) for index, caption in rows])
        ids = batch.class_ids.tolist()
        assert set(ids) <= {caption_id(caption) for _, caption in rows}  # which mean the same in every process
        return [ids.index(number) for number in ids]

    assert groups((0, "a"), (1, "b"), (0, "c"), (2, "d"), (0, "a")) == [0, 1, 0, 3, 0]
    assert groups((0, "a"), (1, "b"), (1, "a"), (2, "c"), (0, "d")) == [0, 0, 0, 3, 0]
    assert groups((0, "a"), (1, "b"), (2, "c"), (0, "b"), (1, "c")) == [0] * 5


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


# ---------------------------------------------------------------------------------------------------------------------
# What files hold
# ---------------------------------------------------------------------------------------------------------------------

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    """Upper left, upper right, lower left, lower right."""
    right, bottom = image.width - 1, image.height - 1
    return [image.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]


def png(path: Path, width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 2) -> Path:
    """A PNG put together by hand."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, extension: str) -> None:
    upright = Image.new("RGB", (48, 32), WHITE)
    for colour, place in ((RED, (0, 0)), (GREEN, (40, 0)), (BLUE, (0, 24))):
        upright.paste(colour, (*place, place[0] + 8, place[1] + 8))
    # How a camera held that way stores it: row 0 and column 0 of the pixels are these sides of the picture.
    pixels = np.asarray(upright)
    flipped = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    stored = np.flip(pixels, flipped)
    if orientation >= 5:
        stored = stored.transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{extension}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95, subsampling=0)
    image = load_image(path)
    assert image.size == (48, 32)
    for found, expected in zip(corners(image), (RED, GREEN, BLUE, WHITE), strict=True):
        assert found == pytest.approx(expected, abs=12)


def test_a_box_is_in_pixels_of_the_upright_picture(tmp_path: Path) -> None:
    # Upright 40 x 80, its lower half red; stored lying on its side.
    upright = Image.new("RGB", (40, 80), WHITE)
    upright.paste(RED, (0, 40, 40, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    # Half a side 0.75 * 20 = 15 around (20, 60): below row 45 all is red, and the last row is 75 (of 40 stored ones).
    image = load_image(tmp_path / "turned.png", (10, 50, 20, 20))
    assert image.size == (30, 30)
    assert corners(image) == [RED] * 4


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"garbage garbage", b"II", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\0"])
def test_unreadable_exif_leaves_the_picture_as_it_is(tmp_path: Path, extension: str, exif: bytes) -> None:
    path = tmp_path / f"picture.{extension}"
    Image.new("RGB", (48, 32), WHITE).save(path, exif=b"Exif\0\0" + exif)
    image = load_image(path)
    assert image.size == (48, 32)
    assert corners(image) == [WHITE] * 4


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_a_sound_orientation_counts_whatever_other_notes_are(tmp_path: Path, extension: str) -> None:
    """`ImageOps.exif_transpose` gives up here: it writes the other notes anew."""
    width = b"\x00\x01\x01\x00\x01\x00\x00\x00\xff\xff\xff\xff"  # a byte, where numbers are expected
    turned = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    path = tmp_path / f"picture.{extension}"
    exif = b"Exif\0\0II*\x00\x08\x00\x00\x00\x02\x00" + width + turned + bytes(4)
    Image.new("RGB", (48, 32), WHITE).save(path, exif=exif)
    assert load_image(path).size == (32, 48)
    with Image.open(path) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)


@pytest.mark.parametrize(
    ("mode", "clear", "opaque"),
    [("RGBA", (9, 9, 9, 0), (200, 10, 20, 255)), ("LA", (9, 0), (77, 255)), ("RGBA", (0, 0, 0, 128), (1, 2, 3, 255))],
)
def test_transparent_pictures_lie_on_white(tmp_path: Path, mode: str, clear: tuple, opaque: tuple) -> None:
    image = Image.new(mode, (8, 8), opaque)
    image.putpixel((0, 0), clear)
    image.save(tmp_path / "picture.png")
    loaded = load_image(tmp_path / "picture.png")
    expected = tuple(round(value * clear[-1] / 255 + 255 - clear[-1]) for value in clear[:-1])
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == pytest.approx(expected * (1 if mode == "RGBA" else 3), abs=1)
    assert loaded.getpixel((5, 5)) == opaque[:-1] * (1 if mode == "RGBA" else 3)


@pytest.mark.parametrize("extension", ["png", "gif", "webp"])
def test_a_transparent_colour_becomes_white(tmp_path: Path, extension: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.putpixel((0, 0), 0)
    path = tmp_path / f"picture.{extension}"
    if extension == "webp":
        image.info["transparency"] = 0
        image.convert("RGBA").save(path, lossless=True)
    else:
        image.save(path, transparency=0)
    assert load_image(path).getpixel((0, 0)) == WHITE
    assert load_image(path).getpixel((5, 5)) == (200, 10, 20)


@pytest.mark.parametrize(
    ("colour", "depth", "row", "clear"),
    [
        (2, 8, bytes([9, 8, 7, 200, 10, 20]), struct.pack(">HHH", 9, 8, 7)),
        (0, 8, bytes([9, 200]), struct.pack(">H", 9)),
        (0, 16, struct.pack(">HH", 2313, 200 * 257), struct.pack(">H", 2313)),
    ],
)
def test_a_png_may_name_its_transparent_value(
    tmp_path: Path, colour: int, depth: int, row: bytes, clear: bytes
) -> None:
    data = (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row))
    image = load_image(png(tmp_path / "p.png", 2, 1, *data, depth=depth, colour=colour))
    assert image.getpixel((0, 0)) == WHITE
    assert image.getpixel((1, 0)) == ((200, 10, 20) if colour == 2 else (200, 200, 200))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_grey_values_of_16_bits_are_scaled(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"grey.{extension}"
    Image.fromarray(np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)).save(path)
    assert [load_image(path).getpixel((x, 0)) for x in range(6)] == [(v,) * 3 for v in (0, 0, 1, 1, 128, 255)]


def test_grey_values_of_32_bits_may_not_need_them(tmp_path: Path) -> None:
    path = tmp_path / "grey.tif"
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(path)
    assert [load_image(path).getpixel((x, 0)) for x in range(2)] == [(0,) * 3, WHITE]
    for values, named in (([0, 65536], "0 to 65536"), ([-1, 5], "-1 to 5")):
        Image.fromarray(np.array([values], dtype=np.int32)).save(path)
        with pytest.raises(BadSampleError, match=rf"grey\.tif: expected grey values of 0 to 65535, got {named}"):
            load_image(path)


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "height.tif"
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(path)
    with pytest.raises(BadSampleError, match=r"height\.tif: expected a picture of whole numbers, got floating-point"):
        load_image(path)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "picture.jpg", quality=100)
    red, green, blue = load_image(tmp_path / "picture.jpg").getpixel((3, 3))
    assert red > 245
    assert max(green, blue) < 10


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "moving.gif").getpixel((3, 3)) == RED


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.parametrize(("side", "size"), [(50_000, r"2500000000 pixels"), (10_000, "10000 x 10000")])
def test_a_decompression_bomb_is_refused_undecoded(
    tmp_path: Path, side: int, size: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 x 10,000 lies between once and twice PIL's limit, where PIL only warns."""
    path = png(tmp_path / "bomb.png", side, side, (b"IDAT", zlib.compress(bytes(1000))))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    expected = r"bomb\.png: expected a picture of at most 89478485 pixels, got "
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(BadSampleError, match=expected) as caught:
            load_image(path)
    assert ("100000000 pixels" if action == "error" and side == 10_000 else size) in str(caught.value)


def test_a_limit_lifted_by_hand_stays_lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadSampleError, match="at most 399 pixels, got 20 x 20"):
            load_image(path)
    for limit in (400, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(path).size == (20, 20)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000), (1, 1), (1, 30_000)])
def test_pictures_of_any_shape_are_cropped(tmp_path: Path, size: tuple[int, int], train: bool) -> None:
    path = tmp_path / "line.png"
    Image.new("RGB", size, RED).save(path)
    dataset = CaptionedImages([record(path)], 256, train=train)
    begin = time.perf_counter()
    image = dataset[0].image
    assert time.perf_counter() - begin < 2  # 3 million x 304 pixels would take longer, and 3 GB
    assert image.shape == (3, 256, 256)
    assert torch.equal(image[0], torch.ones(256, 256))
    assert torch.equal(image[1:], -torch.ones(2, 256, 256))


@pytest.mark.parametrize("size", [(200, 120), (90, 91), (300, 45), (33, 250)])
def test_resizing_the_crop_is_cropping_the_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    scale = 76 / min(size)
    whole = Image.fromarray(pixels).resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - 64) // 2, (whole.height - 64) // 2
    expected = np.asarray(whole.crop((left, top, left + 64, top + 64)), dtype=np.float32)
    found = CaptionedImages([record(path)], 64, train=False)[0].image.permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(found - expected).max() < 1.5


# ---------------------------------------------------------------------------------------------------------------------
# Several sizes
# ---------------------------------------------------------------------------------------------------------------------


def test_several_sizes_show_the_same_crop(gradient: Path) -> None:
    torch.manual_seed(3)
    dataset = CaptionedImages([record(gradient)] * 2, [16, 64, 32], train=True)
    for _ in range(20):
        images = dataset[0].image
        assert isinstance(images, tuple)
        assert [image.shape for image in images] == [(3, 16, 16), (3, 64, 64), (3, 32, 32)]
        for image in images:
            assert image.is_contiguous()
            pooled = torch.nn.functional.adaptive_avg_pool2d(image, 4)
            assert torch.allclose(pooled, torch.nn.functional.adaptive_avg_pool2d(images[1], 4), atol=0.03)


def test_the_largest_of_several_sizes_is_as_if_alone(gradient: Path) -> None:
    samples = []
    for size in (64, (64,), (16, 64)):
        torch.manual_seed(1)
        samples.append(CaptionedImages([record(gradient)], size, train=True)[0])
    alone, one, two = samples
    assert torch.equal(alone.image, one.image[0])
    assert torch.equal(alone.image, two.image[1])
    assert len({sample.caption for sample in samples}) == 1


def test_a_batch_of_several_sizes(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient)] * 3, (16, 8), train=False)
    batch = collate([dataset[i] for i in range(3)])
    assert isinstance(batch.images, tuple)
    assert [images.shape for images in batch.images] == [(3, 3, 16, 16), (3, 3, 8, 8)]


# ---------------------------------------------------------------------------------------------------------------------
# Records, captions and tokens
# ---------------------------------------------------------------------------------------------------------------------

WORDS = Vocabulary(["<end>", "<unk>", "first", "second", "third", "caption"])


def test_records_stay_packed(gradient: Path) -> None:
    records = Records([record(gradient)] * 3)
    dataset = CaptionedImages(records, 16, train=False)
    assert dataset.records is records
    assert len(dataset) == 3
    assert dataset[1].caption == "second caption"


def test_making_a_data_set_does_not_walk_through_it(gradient: Path) -> None:
    class Untouched(Records):
        def __getitem__(self, index: int) -> Record:
            raise AssertionError("walked")

    assert len(CaptionedImages(Untouched([record(gradient)] * 2), 16, train=True)) == 2


def test_tokens_are_those_of_the_vocabulary(gradient: Path) -> None:
    long = record(gradient)._replace(captions=("first " + "purple " * 10_000 + "third",), class_id=None)
    dataset = CaptionedImages([record(gradient), long], 16, train=False)
    samples = [dataset[0], dataset[1]]
    batch = Collate(WORDS, max_words=6)(samples)
    assert batch.tokens.dtype == batch.lengths.dtype == torch.int64
    assert batch.tokens.tolist() == [[2, 5, 0, 0, 0, 0], [2, 1, 1, 1, 1, 4]]
    assert batch.lengths.tolist() == [2, 6]
    assert Collate(WORDS)(samples).tokens.shape == (2, 18)
    plain = collate(samples)
    assert (plain.tokens, plain.lengths) == (None, None)
    assert torch.equal(plain.class_ids, batch.class_ids)
    assert plain.captions == batch.captions


def test_tokens_encode_as_the_captions_do() -> None:
    matcher = tiny.build_matcher()
    matcher.max_words = 4
    dataset = CaptionedImages(open_split(tiny.birds(), "train"), 16, train=False)
    batch = Collate(matcher.vocabulary, matcher.max_words)([dataset[i] for i in range(8)])
    tokens, captions = matcher.encode_tokens(batch.tokens, batch.lengths), matcher.encode_text(batch.captions)
    assert all(map(torch.equal, tokens, captions))


@pytest.mark.parametrize("caption", ["!?! ...", "purple", "purple " * 9_000])
def test_a_caption_without_a_known_word_is_named(gradient: Path, caption: str) -> None:
    bad = record(gradient)._replace(key="c/d", captions=(caption,))
    dataset = CaptionedImages([record(gradient), bad], 16, train=False)
    with pytest.raises(BadSampleError, match=r"c/d: expected a caption with a word of the vocabulary \(6 words\)") as e:
        Collate(WORDS)([dataset[0], dataset[1]])
    assert repr(caption[:50])[1:-1] in str(e.value)
    assert len(str(e.value)) < 200
    assert e.value.where == "c/d"


def test_captions_without_a_known_word_are_passed_over(gradient: Path) -> None:
    one = record(gradient)._replace(captions=("...", "purple", "first", "??", "a third one"))
    dataset = CaptionedImages([one] * 3, 16, train=False, vocabulary=WORDS)
    assert [(s.caption, s.caption_index) for s in dataset] == [("first", 2), ("a third one", 4), ("first", 2)]
    torch.manual_seed(0)
    dataset = CaptionedImages([one], 16, train=True, vocabulary=WORDS)
    assert {dataset[0].caption_index for _ in range(30)} == {2, 4}
    none = one._replace(captions=("...", "purple"))
    with pytest.raises(BadSampleError, match=r"a/b: expected a caption with a word of the vocabulary.*got '\.\.\.'"):
        CaptionedImages([none], 16, train=True, vocabulary=WORDS)[0]
    # Without a vocabulary nobody knows.
    assert CaptionedImages([none], 16, train=False)[0].caption == "..."


def test_a_vocabulary_that_knows_every_caption_changes_nothing(gradient: Path) -> None:
    drawn = []
    for vocabulary in (None, WORDS):
        torch.manual_seed(5)
        dataset = CaptionedImages([record(gradient)], 16, train=True, vocabulary=vocabulary)
        drawn.append([(s.caption, float(s.image.sum())) for s in (dataset[0] for _ in range(6))])
    assert drawn[0] == drawn[1]


def test_what_was_skipped_travels_with_the_batch(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient)] * 2, 16, train=False)
    assert dataset[0].skipped == ()
    samples = [dataset[0].in_place_of(["x.jpg", "y"]), dataset[1], dataset[1].in_place_of(["x.jpg"])]
    assert collate(samples).skipped == ["x.jpg", "y", "x.jpg"]
    assert collate(samples[1:2]).skipped == []


def test_a_loader_of_ones_own() -> None:
    """Two ranks of two worker processes each."""
    dataset = CaptionedImages(open_split(tiny.birds(), "train"), 16, train=True)
    vocabulary = tiny.build_matcher().vocabulary
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=4)
        loader = DataLoader(dataset, batch_size=5, sampler=sampler, num_workers=2, collate_fn=Collate(vocabulary, 5))
        for batch in loader:
            tokens, lengths = vocabulary.encode_batch(batch.captions, 5)
            assert torch.equal(batch.tokens, tokens)
            assert torch.equal(batch.lengths, lengths)
            seen += batch.keys
    assert sorted(seen) == sorted(r.key for r in dataset.records)


def test_what_a_loader_needs_reaches_spawned_processes() -> None:
    """They get it pickled."""
    dataset = CaptionedImages(open_split(tiny.birds(), "train"), 16, train=False, vocabulary=WORDS)
    made = pickle.loads(pickle.dumps(Collate(tiny.build_matcher().vocabulary, 5)))
    assert (made.vocabulary, made.max_words) == (tiny.build_matcher().vocabulary, 5)
    with pytest.raises(BadSampleError, match="a word of the vocabulary"):
        pickle.loads(pickle.dumps(dataset))[3]
    dataset.vocabulary = None
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3].image, dataset[3].image)


def test_workers_do_not_draw_alike(gradient: Path) -> None:
    dataset = CaptionedImages([record(gradient, (60, 30, 40, 20))] * 16, 51, train=True)
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=8, num_workers=2, collate_fn=collate)
    # The first batch is one worker's, the second the other's; and the next epoch is drawn anew.
    batches = [batch for _ in range(2) for batch in loader]
    for a, b in itertools.combinations(batches, 2):
        assert not torch.equal(a.images, b.images)
        assert [int(i) for i in a.caption_indices] != [int(i) for i in b.caption_indices]


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be used
# ---------------------------------------------------------------------------------------------------------------------


def test_bad_pictures_are_named(gradient: Path, tmp_path: Path) -> None:
    contents = {
        "text.jpg": (b"not a picture", "expected a picture, got a file of no format that Pillow knows"),
        "empty.png": (b"", "expected a picture, got an empty file"),
        "half.png": (gradient.read_bytes()[:200], "expected a picture, but reading it failed"),
    }
    for name, (content, what) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadSampleError, match=what) as caught:
            CaptionedImages([record(tmp_path / name)], 16, train=False)[0]
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert caught.value.where == str(tmp_path / name)
    Image.effect_noise((90, 90), 50).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadSampleError, match=r"half\.jpg: expected a picture, but reading it failed .*truncated"):
        load_image(tmp_path / "half.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BadSampleError, match=r"folder\.jpg: expected a picture, found a folder"):
        load_image(tmp_path / "folder.jpg")


def test_a_missing_picture_is_a_bad_one_and_a_missing_file(gradient: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jpg", gradient / "inside.jpg"):
        for kind in (FileNotFoundError, BadSampleError, MissingPictureError):
            with pytest.raises(kind, match=rf"{path.name}: expected a picture, found no such file") as caught:
                CaptionedImages([record(path)], 16, train=False)[0]
        assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["gone.jpg", "text.jpg"])
def test_errors_come_whole_out_of_another_process(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    dataset = CaptionedImages([record(tmp_path / name)], 16, train=False)
    with pytest.raises(BadSampleError) as caught:
        dataset[0]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.where) == (type(caught.value), str(caught.value), caught.value.where)
    batches = iter(DataLoader(dataset, num_workers=1, collate_fn=collate))
    with pytest.raises(type(caught.value), match=rf"{name}: expected a picture"):
        next(batches)
    batches._shutdown_workers()


def test_boxes_partly_and_wholly_outside(gradient: Path) -> None:
    assert load_image(gradient, (190, -10, 40, 40)).size == (20, 40)  # columns 180 to 200, rows 0 to 40
    for box in ((500, 500, 10, 10), (-300, 0, 20, 20), (0, 200, 20, 20)):
        with pytest.raises(BadSampleError, match=r"gradient\.png: expected a bounding box inside its 200 x 120 pixels"):
            CaptionedImages([record(gradient, box)], 16, train=False)[0]


def test_bad_arguments(gradient: Path) -> None:
    with pytest.raises(ValueError, match="records: expected at least one picture"):
        CaptionedImages([], 16, train=True)
    for size in (0, (16, 0), ()):
        with pytest.raises(ValueError, match="image_size: expected at least 1 pixel, got"):
            CaptionedImages([record(gradient)], size, train=True)
    with pytest.raises(BadSampleError, match="a/b: expected at least one caption, got none"):
        CaptionedImages([record(gradient)._replace(captions=())], 16, train=True)[0]
