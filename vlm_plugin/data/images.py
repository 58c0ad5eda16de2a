"""Pictures: from files to tensors, and from tensors to bytes and files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from vlm_plugin.data.png import without_notes
from vlm_plugin.data.records import BadSampleError, MissingPictureError, bad
from vlm_plugin.data.text import is_unread, mishap
from vlm_plugin.files import open_file, refusal, writing

# Pillow's modes whose pixels may be transparent.
MODES_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# Half the side of the square around a bounding box, in units of the box's longer side.
_BOX_MARGIN = 0.75
# EXIF orientation -> what turns the stored pixels upright. Pillow's own `exif_transpose` also writes the notes anew,
# which fails where any other of them is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# 16-bit grey values (0 to 65535) to one of 8 bits.
_TO_8_BITS = 257


def load_image(path: Path, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Reads a picture, turns it upright and crops it around a bounding box.

    It is turned as its EXIF orientation says before anything else: boxes are in pixels of the upright picture.
    Transparent pictures are laid over white, grey values of 16 bits are scaled to 8, and of several frames the first
    one counts.

    Args:
        path: the file.
        box: (x, y, width, height) in pixels, or None for the whole picture. What lies outside the picture is cut off.

    Returns:
        An RGB picture.

    Raises:
        MissingPictureError: there is no such file.
        BadSampleError: the file cannot be opened or read as a picture, has more than `PIL.Image.MAX_IMAGE_PIXELS`
            pixels (refused before any is decoded) or floating-point values, or the box lies outside it. The message
            names the file.
    """
    try:
        with open_file(path) as file:
            image = _read(path, file)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        kind = MissingPictureError if missing else BadSampleError
        raise bad(path, f"expected a picture, {refusal(error)}", kind) from None
    if box is not None:
        image = image.crop(_around(path, box, image.width, image.height))
    return image


def orientation(image: Image.Image) -> int:
    """A picture's EXIF orientation, 1 to 8; from 5 on, width and height change places when it is turned upright.

    1, as it is stored, where it has none or its notes cannot be read beside sound pixels: so every viewer shows it.
    """
    try:
        number = image.getexif().get(ExifTags.Base.Orientation)
        return int(number) if number in _TURNS else 1
    except Exception:  # damaged notes fail in many ways
        return 1


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as `(3, height, width)` float32 in [-1, 1]."""
    pixels = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def central_square(image: Image.Image, size: int) -> Tensor:
    """All of a square picture, the middle of any other, as `(3, size, size)` in [-1, 1]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # PIL's bilinear filter is antialiased. Only the square is resized: a strip would become a picture of gigabytes.
    return to_tensor(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def to_image(picture: Tensor, side: int | None = None) -> Image.Image:
    """A `(3, S, S)` picture in [-1, 1] as RGB, resized to `side` pixels where that is given."""
    image = Image.fromarray(to_bytes(picture.detach().float().cpu()).permute(1, 2, 0).numpy())
    return image if side is None else image.resize((side, side), Image.Resampling.BICUBIC)


def write_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture, whole or not at all; errors as those of `vlm_plugin.files.writing`."""
    with writing(path) as file:
        image.save(file, format="PNG")


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8, as they are written.

    Raises:
        ValueError: a value is NaN or infinite, which would pass for black or white.
    """
    if not bool(pictures.isfinite().all()):
        raise ValueError(
            "pictures: expected finite values, got NaN or infinity: the generator that drew them, or the matcher that "
            "read its captions, has broken down"
        )
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_bytes(pictures: Tensor) -> Tensor:
    """uint8 pictures as float32 in [-1, 1], as they are read.

    Always in one memory layout: a generator leaves its own behind, and convolutions round differently for each.
    """
    return pictures.contiguous().float() / 127.5 - 1.0


def as_written(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as they come back from a file."""
    return from_bytes(to_bytes(pictures))


def open_picture(file: BinaryIO) -> Image.Image:
    """`PIL.Image.open`, also for a PNG with more text or a larger colour profile than Pillow takes.

    Pillow's limits are the process's: they stay as they are, for the host and its other threads.

    Args:
        file: stays open as long as the picture is used.

    Raises:
        Exception: whatever Pillow raises.
    """
    try:
        return Image.open(file)
    except ValueError:
        bare = without_notes(file)
        if bare is None:
            raise
        return Image.open(bare)


def _read(path: Path, file: BinaryIO) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        try:
            return _decoded(path, open_picture(file))
        except BadSampleError:
            raise
        except ValueError:
            # Texts may lie behind the pixels as well.
            bare = without_notes(file)
            if bare is None:
                raise
            return _decoded(path, Image.open(bare))
    except BadSampleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise bad(path, f"expected a picture of at most {limit} pixels, got more ({error})") from None
    except UnidentifiedImageError:
        raise bad(path, f"expected a picture, got {_unknown(path, file)}") from None
    # A damaged picture can fail with many types of exception, SyntaxError and struct.error among them.
    except Exception as error:
        raise bad(path, f"expected a picture, but reading it failed ({type(error).__name__}: {error})") from error


def _decoded(path: Path, image: Image.Image) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    with image:
        # A camera's raw picture, of which Pillow would show the thumbnail.
        if image.format == "TIFF" and is_unread(Path(path).name):
            raise bad(path, f"expected a picture, got {_unread(path)}")
        # Up to twice its limit PIL itself only warns.
        if limit is not None and image.width * image.height > limit:
            raise bad(path, f"expected a picture of at most {limit} pixels, got {image.width} x {image.height}")
        # First, for EXIF can lie behind the pixels, and `orientation` makes little of errors.
        image.load()
        return _rgb(path, _upright(image))


def _unknown(path: Path, file: BinaryIO) -> str:
    """What a file is that Pillow does not know."""
    file.seek(0)
    head = file.read(2048).decode("utf-8", "replace")
    if is_unread(Path(path).name) and head and not mishap(head):
        return _unread(path)
    return mishap(head) or ("a file of no format that Pillow knows" if head else "an empty file")


def _unread(path: Path) -> str:
    return f"a {Path(path).suffix} file, which Pillow does not read here: convert it to PNG or JPEG"


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise bad(path, "expected a picture of whole numbers, got floating-point values, whose range is unknown")
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 255 * _TO_8_BITS:
            raise bad(path, f"expected grey values of 0 to 65535, got {values.min()} to {values.max()}")
        grey = (values + _TO_8_BITS // 2) // _TO_8_BITS
        if clear is not None:
            grey[values == clear] = 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if clear is not None or image.mode in MODES_WITH_ALPHA:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _around(path: Path, box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """The square around a box, cut off at the picture's border, as (left, top, right, bottom)."""
    x, y, box_width, box_height = box
    half = _BOX_MARGIN * max(box_width, box_height)
    centre_x, centre_y = x + box_width / 2, y + box_height / 2
    left, right = max(round(centre_x - half), 0), min(round(centre_x + half), width)
    top, bottom = max(round(centre_y - half), 0), min(round(centre_y + half), height)
    if right <= left or bottom <= top:
        raise bad(path, f"expected a bounding box inside its {width} x {height} pixels, got {box}")
    return left, top, right, bottom
