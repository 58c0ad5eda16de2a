"""The front door of the loss: everything that a host hands over is looked at here, once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_plugin.checks import autocasts
from vlm_plugin.features import Features
from vlm_plugin.matcher.vocabulary import Vocabulary

# A share of unknown words that says that captions are not those a matcher was made for.
_MANY = 0.2


def warn_of_unknown_words(captions: Sequence[str], vocabulary: Vocabulary) -> None:
    """Warn of captions that the matcher hardly knows: it was pretrained on others."""
    words = [word for caption in captions for word in vocabulary.tokenize(caption)]
    unknown = [word for word in words if word not in vocabulary]
    if len(unknown) > _MANY * len(words):
        some = ", ".join(list(dict.fromkeys(unknown))[:5])
        warnings.warn(
            f"captions: {len(unknown)} of the first {len(words)} words are unknown to the matcher ({some}), which was "
            "pretrained on other captions",
            stacklevel=3,
        )


def check_host_images(name: str, images: Tensor, like: Tensor | None) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name}: expected a floating-point tensor (B, 3, H, W), got {kind}")
    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"{name}: expected shape (B, 3, H, W), got {tuple(images.shape)}")
    if like is None:
        return
    if images.device != like.device:
        raise ValueError(f"{name}: expected images on {like.device}, where the matcher is, got {images.device}")
    if images.dtype != like.dtype and not autocasts(images, like):
        outside = ", which autocast leaves as it is" if images.dtype == torch.float64 else ", outside autocast"
        raise TypeError(f"{name}: expected {like.dtype}, the matcher's dtype, got {images.dtype}{outside}")


def check_fit(name: str, anchor: Features, image: Features) -> None:
    """Anchors must have the images' width and, once raised to at least float32, their dtype."""
    if anchor.local.shape[-1] != image.local.shape[-1]:
        raise ValueError(
            f"{name}: expected features of width {image.local.shape[-1]} as the image encoder's, "
            f"got {anchor.local.shape[-1]}"
        )
    for given, expected in ((anchor.local, image.local), (anchor.pooled, image.pooled)):
        if torch.promote_types(given.dtype, torch.float32) != torch.promote_types(expected.dtype, torch.float32):
            raise TypeError(f"{name}: expected {expected.dtype} as the image encoder's features, got {given.dtype}")
