"""One data set of captioned pictures, whatever the layout they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vlm_plugin.data.records import Record

# Pictures are resized to 76/64 of the wanted size and cropped, as StackGAN, AttnGAN and DF-GAN do.
_RESIZE = (76, 64)
# Half the side of the square around a bounding box, in units of the box's longer side.
_BOX_MARGIN = 0.75


class Sample(NamedTuple):
    """One picture with one of its captions."""

    image: Tensor
    """(3, S, S) float32 in [-1, 1]."""
    caption: str
    caption_index: int
    """Position of the caption among the picture's captions."""
    class_id: int
    """The class, or a stable id of the caption's text where there are no classes."""
    key: str
    index: int
    """Position of the picture in the data set."""


class Batch(NamedTuple):
    """B samples."""

    images: Tensor
    """(B, 3, S, S) float32 in [-1, 1]."""
    captions: list[str]
    caption_indices: Tensor
    """(B,) int64."""
    class_ids: Tensor
    """(B,) int64."""
    keys: list[str]
    indices: Tensor
    """(B,) int64."""


class CaptionedImages(Dataset[Sample]):
    """Pictures with captions, cropped to one size.

    A picture is cropped to a square around its bounding box (if it has one; half a side is 0.75 times the box's longer
    side; what lies outside the picture is cut off), and resized until its shorter side is 76/64 of `image_size`. From
    that, training takes a crop at random, mirrors it at random and draws one of the captions; evaluation takes the
    centre, unmirrored, and caption number `index % number of captions`. All randomness is torch's, which a DataLoader
    seeds apart for each worker.

    Args:
        records: the pictures, at least one.
        image_size: side S of the pictures in pixels.
        train: crop, mirror and draw captions at random.
        flip: mirror at random when training. Switch it off if captions tell left from right.

    Raises:
        ValueError: no records, a record without captions, or an image size below 1.
    """

    def __init__(self, records: Sequence[Record], image_size: int, *, train: bool, flip: bool = True) -> None:
        if image_size < 1:
            raise ValueError(f"image_size: expected at least 1 pixel, got {image_size}")
        if not records:
            raise ValueError("records: expected at least one picture, got none")
        for record in records:
            if not record.captions:
                raise ValueError(f"records: expected at least one caption for {record.key}, got none")
        self.records = list(records)
        self.image_size = image_size
        self.train = train
        self.flip = flip

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            IndexError: the index is not in 0 .. len - 1.
            FileNotFoundError: the picture is missing.
            ValueError: the picture cannot be read, or its box lies outside it.
        """
        if not 0 <= index < len(self.records):
            raise IndexError(f"index: expected 0 to {len(self.records) - 1}, got {index}")
        record = self.records[index]
        image = self._crop(load_image(record.image, record.box, self.image_size * _RESIZE[0] // _RESIZE[1]))
        count = len(record.captions)
        number = int(torch.randint(count, ())) if self.train else index % count
        caption = record.captions[number]
        class_id = caption_id(caption) if record.class_id is None else record.class_id
        return Sample(image, caption, number, class_id, record.key, index)

    def _crop(self, image: Image.Image) -> Tensor:
        size = self.image_size
        free_x, free_y = image.width - size, image.height - size
        mirror = False
        if self.train:
            left, top = int(torch.randint(free_x + 1, ())), int(torch.randint(free_y + 1, ()))
            mirror = self.flip and bool(torch.rand(()) < 0.5)
        else:
            left, top = free_x // 2, free_y // 2
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
        tensor = torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)
        return (tensor.flip(2) if mirror else tensor).contiguous()


def load_image(path: Path, box: tuple[float, float, float, float] | None, shorter_side: int) -> Image.Image:
    """Reads a picture, crops it around a bounding box and resizes it, keeping its proportions.

    Args:
        path: the file.
        box: (x, y, width, height) in pixels, or None for the whole picture.
        shorter_side: length of the result's shorter side in pixels.

    Returns:
        An RGB picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as a picture, or the box lies outside it. The message names the file.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a picture, found no such file") from None
    # A damaged picture can fail with many types of exception, SyntaxError and struct.error among them.
    except Exception as error:
        raise ValueError(
            f"{path}: expected a picture, but reading it failed ({type(error).__name__}: {error})"
        ) from error
    if box is not None:
        image = image.crop(_around(path, box, image.width, image.height))
    scale = shorter_side / min(image.size)
    width, height = (max(round(side * scale), shorter_side) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)  # PIL's bilinear filter is antialiased


def _around(path: Path, box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """The square around a box, cut off at the picture's border, as (left, top, right, bottom)."""
    x, y, box_width, box_height = box
    half = _BOX_MARGIN * max(box_width, box_height)
    centre_x, centre_y = x + box_width / 2, y + box_height / 2
    left, right = max(round(centre_x - half), 0), min(round(centre_x + half), width)
    top, bottom = max(round(centre_y - half), 0), min(round(centre_y + half), height)
    if right <= left or bottom <= top:
        raise ValueError(f"{path}: expected a bounding box inside its {width} x {height} pixels, got {box}")
    return left, top, right, bottom


def caption_id(caption: str) -> int:
    """An id of a caption's text, 0 to 2^63 - 1: the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def collate(samples: Sequence[Sample]) -> Batch:
    """Puts samples into a batch: the `collate_fn` of a DataLoader over `CaptionedImages`."""
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        captions=[sample.caption for sample in samples],
        caption_indices=torch.tensor([sample.caption_index for sample in samples], dtype=torch.long),
        class_ids=torch.tensor([sample.class_id for sample in samples], dtype=torch.long),
        keys=[sample.key for sample in samples],
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.long),
    )
