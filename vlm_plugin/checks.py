"""Checks of values that a caller hands over: each raises one error that names the argument."""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch

INTEGER_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def is_integer(value: object, least: int) -> bool:
    """Whether a value is an integer of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_integer(name: str, value: int, least: int) -> None:
    """Refuse all but an integer of at least `least`.

    Raises:
        ValueError: `value` is another; the message begins with `name`.
    """
    if not is_integer(value, least):
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


def check_positive(**values: int) -> None:
    """Refuse all but integers of at least 1: sizes and counts.

    Raises:
        ValueError: a value is another; the message begins with the name under which it was given.
    """
    for name, value in values.items():
        if not is_integer(value, 1):
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_number(name: str, value: float, positive: bool = False) -> None:
    """Refuse all but a finite number.

    Args:
        name: how the caller calls it, for the message.
        value: what to verify.
        positive: it has to be above 0, too.

    Raises:
        TypeError: `value` is no number.
        ValueError: it is NaN, infinite, or not above 0 where it should be.
    """
    expected = "a positive, finite number" if positive else "a finite number"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{name}: expected {expected}, got {value}")


def check_image_range(image_range: tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest value of pictures, as floats.

    Raises:
        ValueError: `image_range` is no pair of finite numbers in rising order.
    """
    try:
        low, high = (float(value) for value in image_range)
    except (TypeError, ValueError):
        raise ValueError(f"image_range: expected (lowest, highest), got {image_range!r}") from None
    if isinstance(image_range, str) or not low < high or math.isinf(high - low):
        raise ValueError(f"image_range: expected (lowest, highest), both finite, got {image_range!r}")
    return low, high


def check_captions(captions: Sequence[str], batch: int) -> list[str]:
    """A caption for each of `batch` pictures, as a list.

    Raises:
        ValueError: `captions` is no sequence of as many strings; the message names the first that is none.
    """
    if isinstance(captions, (str, bytes)) or not isinstance(captions, Sequence):
        raise ValueError(f"captions: expected a list of {batch} strings, got {type(captions).__name__}")
    if len(captions) != batch:
        raise ValueError(f"captions: expected {batch} as there are images, got {len(captions)}")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"captions[{index}]: expected a string, got {type(caption).__name__}")
    return list(captions)


def is_image_batch(images: Tensor) -> bool:
    """Whether a tensor has the shape of pictures: `(B, 3, H, W)` with B, H and W at least 1."""
    return images.dim() == 4 and images.shape[1] == 3 and 0 not in images.shape


def fits_dtype(images: Tensor, weight: Tensor) -> bool:
    """Whether a network with the parameter `weight` takes `images` as they are: of its dtype, or under autocast, which
    brings both together but leaves float64 as it is."""
    if images.dtype == weight.dtype:
        return True
    return torch.is_autocast_enabled(images.device.type) and torch.float64 not in (images.dtype, weight.dtype)


def without_autocast(device: torch.device) -> torch.autocast:
    """A block in which what lies on a device keeps its dtype. Where there is no autocast (meta) it changes nothing."""
    return torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False)


def check_image_batch(images: Tensor, weight: Tensor) -> None:
    """Refuse what an encoder with the parameter `weight` cannot take; values are not looked at.

    Raises:
        TypeError: `images` is no floating-point tensor, or of another dtype than the encoder, outside autocast.
        ValueError: it is no `(B, 3, H, W)`, or on another device than the encoder.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a Tensor (B, 3, H, W), got {type(images).__name__}")
    if not is_image_batch(images):
        raise ValueError(f"images: expected shape (B, 3, H, W) with B, H and W at least 1, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images: expected floating-point values in [-1, 1], got {images.dtype}")
    if images.device != weight.device:
        raise ValueError(f"images: expected them on the encoder's device {weight.device}, got {images.device}")
    if not fits_dtype(images, weight):
        raise TypeError(f"images: expected the encoder's dtype {weight.dtype}, got {images.dtype}, outside autocast")


def as_integers(values: object, name: str) -> Tensor:
    """Integers of a tensor, a numpy array of any byte order and strides, or a sequence, as a tensor.

    Raises:
        TypeError: they are none; the message begins with `name`.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuO":
        is_whole = values.dtype.kind != "O" or all(
            isinstance(value, numbers.Integral) and not isinstance(value, bool) for value in values.flat
        )
        with contextlib.suppress(OverflowError):
            # Torch takes neither arrays with negative strides nor those of another machine's byte order.
            values = values.astype(np.int64) if is_whole else values
    try:
        # Of what is no tensor yet: in the CPU's memory, whatever a host has made the default device.
        found = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: expected integers, got {type(values).__name__} of other values") from None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {found.dtype}")
    return found


def is_transformed(tensor: Tensor) -> bool:
    """Whether torch.func differentiates with regard to a tensor, or maps over it."""
    return functorch.is_functorch_wrapped_tensor(tensor)


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at: not on the meta device, not while torch.compile traces, where a look
    would break the graph, and not in torch.func.vmap, where a tensor stands for many."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    while is_transformed(tensor):
        if functorch.is_batchedtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return True


def first_tensor(*modules: nn.Module) -> Tensor | None:
    """A floating-point tensor of the modules, which tells their device and dtype; None where they have none."""
    tensors = itertools.chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)
