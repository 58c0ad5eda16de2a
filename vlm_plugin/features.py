"""The one type that captions and images share, and adapters from the layouts that GAN trainers hold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlm_plugin.checks import as_integers, is_readable


class Features(NamedTuple):
    """Local vectors and one pooled vector in a common space: words and a sentence, or regions and a global vector.

    Attributes:
        local: `(B, N, D)` floating point, regions or words.
        pooled: `(B, D)` floating point, global image vector or sentence vector.
        mask: `(B, N)` bool, True where `local` is valid.
    """

    local: Tensor
    pooled: Tensor
    mask: Tensor

    def to(self, *args, **kwargs) -> Features:
        """As `Tensor.to` for the two floating-point parts; the mask follows the device only."""
        local = self.local.to(*args, **kwargs)
        return Features(local, self.pooled.to(*args, **kwargs), self.mask.to(local.device))

    def without_padding(self) -> Features:
        """The same with zeros where `mask` is False. Whatever lies there, NaN included, is then in no product: NaN
        times an attention, or a gradient, of 0 would be NaN."""
        return Features(torch.where(self.mask[..., None], self.local, 0.0), self.pooled, self.mask)

    def detach(self) -> Features:
        """The same values without gradient."""
        return Features(self.local.detach(), self.pooled.detach(), self.mask)


def check_features(features: Features, name: str) -> Features:
    """Verify shapes and types.

    Args:
        features: what to verify.
        name: how the caller calls it, for the message.

    Raises:
        TypeError: not a `Features` of tensors, or of a wrong dtype.
        ValueError: shapes that do not fit together, or parts on several devices.
    """
    if not isinstance(features, Features):
        raise TypeError(
            f"{name}: expected Features (text_features(...) makes them from a host's embeddings, "
            f"encode_text(...) from strings), got {type(features).__name__}"
        )
    local, pooled, mask = features
    if not all(isinstance(part, Tensor) for part in features):
        raise TypeError(f"{name}: expected tensors, got {', '.join(type(part).__name__ for part in features)}")
    if not (local.is_floating_point() and pooled.is_floating_point()):
        raise TypeError(f"{name}: expected floating-point vectors, got {local.dtype} and {pooled.dtype}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}.mask: expected bool, True where a vector is valid, got {mask.dtype}")
    if local.dim() != 3 or pooled.dim() != 2 or mask.shape != local.shape[:2]:
        raise ValueError(
            f"{name}: expected local (B, N, D), pooled (B, D) and mask (B, N), "
            f"got {tuple(local.shape)}, {tuple(pooled.shape)} and {tuple(mask.shape)}"
        )
    if pooled.shape != (local.shape[0], local.shape[2]):
        raise ValueError(
            f"{name}: expected pooled of shape {(local.shape[0], local.shape[2])} beside local "
            f"{tuple(local.shape)}, got {tuple(pooled.shape)}"
        )
    if not local.device == pooled.device == mask.device:
        raise ValueError(
            f"{name}: expected local, pooled and mask on one device, "
            f"got {local.device}, {pooled.device} and {mask.device}"
        )
    return features


def mask_from_lengths(lengths: Tensor, size: int, device: torch.device) -> Tensor:
    """Turn lengths into a mask.

    Args:
        lengths: `(B,)` integers from 1 to `size`, on any device.
        size: the padded length N.
        device: where the mask is wanted.

    Returns:
        `(B, size)` bool, True before each length.

    Raises:
        TypeError: `lengths` holds no integers.
        ValueError: `lengths` is not one-dimensional, or holds a length below 1 (an empty caption) or above `size`; of
            lengths on a GPU the values are not looked at, for each look waits for it.
    """
    lengths = as_integers(lengths, "lengths")
    if lengths.dim() != 1:
        raise ValueError(f"lengths: expected shape (B,), got {tuple(lengths.shape)}")
    # Lengths usually live on the CPU (an RNN wants them there), where this look costs no wait for a GPU.
    if lengths.device.type == "cpu" and len(lengths) and is_readable(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1:
            raise ValueError(f"lengths: expected at least one word in every caption, got a length of {low}")
        if high > size:
            raise ValueError(f"lengths: expected at most {size} (the padded length), got {high}")
    return torch.arange(size, device=device) < lengths.to(device, non_blocking=True)[:, None]


def text_features(words: Tensor, sentence: Tensor, lengths: Tensor | None = None) -> Features:
    """Features from a host's DAMSM text embeddings.

    Args:
        words: `(B, D, T)` word vectors, as AttnGAN, DF-GAN and their relatives hold them.
        sentence: `(B, D)` sentence vectors.
        lengths: `(B,)` words in each caption, on any device; all T are valid when left out.

    Returns:
        Features with `local` `(B, T, D)`.

    Raises:
        TypeError, ValueError: wrong types or shapes; the message names the argument.
    """
    for name, value, dims in (("words", words, "(B, D, T)"), ("sentence", sentence, "(B, D)")):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor {dims}, got {_kind(value)}")
    if words.dim() != 3 or sentence.dim() != 2 or words.shape[:2] != sentence.shape:
        raise ValueError(
            "words, sentence: expected (B, D, T) and (B, D) with the same B and D, "
            f"got {tuple(words.shape)} and {tuple(sentence.shape)}"
        )
    batch, _, size = words.shape
    if lengths is None:
        mask = torch.ones(batch, size, dtype=torch.bool, device=words.device)
    else:
        lengths = as_integers(lengths, "lengths")
        if lengths.shape != (batch,):
            raise ValueError(f"lengths: expected shape ({batch},), got {tuple(lengths.shape)}")
        mask = mask_from_lengths(lengths, size, words.device)
    return Features(words.transpose(1, 2), sentence, mask)


def image_features(regions: Tensor, code: Tensor) -> Features:
    """Features from a host's DAMSM image encoder.

    Args:
        regions: `(B, D, H, W)`, DAMSM's 17x17 regions for instance.
        code: `(B, D)` global vector.

    Returns:
        Features with `local` `(B, H*W, D)`, all of it valid.

    Raises:
        TypeError, ValueError: wrong types or shapes; the message names the argument.
    """
    for name, value, dims in (("regions", regions, "(B, D, H, W)"), ("code", code, "(B, D)")):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor {dims}, got {_kind(value)}")
    if regions.dim() != 4 or code.dim() != 2 or regions.shape[:2] != code.shape:
        raise ValueError(
            "regions, code: expected (B, D, H, W) and (B, D) with the same B and D, "
            f"got {tuple(regions.shape)} and {tuple(code.shape)}"
        )
    local = regions.flatten(2).transpose(1, 2)
    return Features(local, code, torch.ones(local.shape[:2], dtype=torch.bool, device=local.device))


def as_features(output: object, name: str) -> Features:
    """What an image encoder returned, as Features: either `Features`, or DAMSM's `(regions, code)` pair.

    Raises:
        TypeError: neither of the two; the message names the encoder by `name`.
    """
    if isinstance(output, Features):
        return output
    if isinstance(output, (tuple, list)) and len(output) == 2:
        return image_features(*output)
    raise TypeError(f"{name}: expected it to return Features or a (regions, code) pair, got {_kind(output)}")


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
