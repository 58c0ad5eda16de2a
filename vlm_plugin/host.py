"""The front door of the loss: everything that a host hands over is looked at here, once.

What is only worth one look (the range of the first pictures, the words of the first captions, masks that live on a GPU,
which each look would stall) is remembered by the door. Messages name the argument, what was expected and what came.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlm_plugin.checks import as_integers, autocasts, check_image_range, first_tensor
from vlm_plugin.features import Features, as_features, check_features
from vlm_plugin.matcher.identity import unwrapped
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary

TERMS = ("vlm_local", "vlm_global", "vlm_general", "vvm_local", "vvm_global", "vvm_general")
# A share of unknown words that says that captions are not those a matcher was made for.
FOREIGN_SHARE = 0.2


class Parts(NamedTuple):
    """A matcher's modules, wherever they come from."""

    image_encoder: nn.Module
    scorer: nn.Module | None
    text_encoder: nn.Module | None


class Given(NamedTuple):
    """What a batch consists of, looked at: it fits together and fits the matcher."""

    fake: Tensor
    """`(B, 3, H, W)` in the encoder's own range, with its gradient."""
    text: Features | None
    """The captions' features without gradient; None where no term needs them."""
    real: Tensor | None
    """`(B, 3, H', W')` in the encoder's own range; None where no term needs them."""
    ids: Tensor | None
    """`(B,)` int64 on the pictures' device; rows of equal id are no negatives of each other."""


def needs(terms: Iterable[str], half: str) -> list[str]:
    """The terms of one half, "vlm" or "vvm"."""
    return [term for term in terms if term.startswith(half)]


def check_parts(
    vlm: VLM | None, image_encoder: nn.Module | None, scorer: nn.Module | None, text_encoder: nn.Module | None
) -> Parts:
    """The modules of a VLM, or those given in its place.

    Raises:
        TypeError, ValueError: both or neither, or something else than modules.
    """
    if vlm is not None:
        if image_encoder is not None or scorer is not None or text_encoder is not None:
            raise ValueError("vlm: expected either a VLM or the modules image_encoder, scorer, text_encoder")
        if not isinstance(vlm, VLM):
            raise TypeError(f"vlm: expected a VLM (VLM.load(path) reads one), got {type(vlm).__name__}")
        image_encoder, scorer, text_encoder = vlm.image_encoder, vlm.scorer, vlm.text_encoder
    if not isinstance(image_encoder, nn.Module):
        raise TypeError(f"image_encoder: expected a VLM or an image encoder, got {type(image_encoder).__name__}")
    for name, part in (("scorer", scorer), ("text_encoder", text_encoder)):
        if part is not None and not isinstance(part, nn.Module):
            raise TypeError(f"{name}: expected an nn.Module, got {type(part).__name__}")
    return Parts(image_encoder, scorer, text_encoder)


def check_terms(terms: Iterable[str], has_scorer: bool) -> tuple[str, ...]:
    """Names of terms in the order of `TERMS`.

    Raises:
        TypeError, ValueError: no collection of these names, none at all, or general ones without a scorer.
    """
    if isinstance(terms, str) or not isinstance(terms, Iterable):
        given = f"the string {terms!r}" if isinstance(terms, str) else type(terms).__name__
        raise TypeError(f"terms: expected a collection of names, got {given}")
    terms = set(terms)
    if unknown := sorted(terms - set(TERMS)):
        raise ValueError(f"terms: expected names of {TERMS}, got {unknown}")
    if not terms:
        raise ValueError(f"terms: expected at least one of {TERMS}, got none")
    chosen = tuple(name for name in TERMS if name in terms)
    general = [term for term in chosen if term.endswith("_general")]
    if general and not has_scorer:
        raise ValueError(
            f"terms: {', '.join(general)} need a trained scorer, which this matcher has not: "
            "leave them out of `terms`, or train one (vlm-plugin pretrain)"
        )
    return chosen


def check_augment(augment: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    """The augmentation itself; TypeError if it cannot be called."""
    if augment is not None and not callable(augment):
        raise TypeError(f"augment: expected a function or module of images, got {type(augment).__name__}")
    return augment


class FrontDoor:
    """Looks at what a host hands to the loss, and remembers what it need not look at again.

    Args:
        image_range: lowest and highest value of the host's pictures.

    Raises:
        ValueError: no such range.
    """

    def __init__(self, image_range: tuple[float, float]) -> None:
        self.image_range = check_image_range(image_range)
        self._range_known = False
        self._fake_seen = False
        self._words_seen = False
        self._captions_seen = False
        self._regions_seen = False

    def check(
        self,
        encoder: nn.Module,
        terms: Sequence[str],
        fake: Tensor,
        text: Features | None,
        real: Tensor | None,
        class_ids: Tensor | Sequence[int] | None,
    ) -> Given:
        """Look at a batch; see `DualVLMLoss.forward` for what is expected.

        Args:
            encoder: the image encoder, which decides on device, dtype and range.
            terms: the terms that are on.
            fake: generated pictures.
            text: the captions' features, or None.
            real: real pictures, or None.
            class_ids: the rows' groups, or None.

        Raises:
            TypeError, ValueError: the message names the argument.
        """
        weight = first_tensor(encoder)
        self._check_pictures("fake", fake, weight)
        self._look_at_fake(fake.detach())
        given_text = self._check_text(text, terms, fake) if needs(terms, "vlm") else None
        if real is not None:
            self._check_pictures("real", real, fake if weight is None else weight)
            if len(real) != len(fake):
                raise ValueError(f"real: expected {len(fake)} images as in fake, got {len(real)}")
            self.check_range(real.detach())
        asked = needs(terms, "vvm")
        if asked and real is None:
            raise ValueError(f"real: expected images (B, 3, H, W) for the terms {asked}, got None")
        target = getattr(unwrapped(encoder), "input_range", (-1.0, 1.0))
        return Given(
            self._in_range(fake, target),
            given_text,
            self._in_range(real, target) if asked else None,
            _check_class_ids(class_ids, fake),
        )

    def check_views(self, views: object, fake: Tensor) -> Tensor:
        """What `augment` made of the generated pictures.

        Raises:
            ValueError: something else than as many pictures.
        """
        if not isinstance(views, Tensor) or views.shape[:2] != fake.shape[:2] or views.dim() != 4:
            got = tuple(views.shape) if isinstance(views, Tensor) else type(views).__name__
            raise ValueError(f"augment: expected images ({len(fake)}, 3, H, W) of its {len(fake)} images, got {got}")
        return views

    def check_encoded(self, output: object, count: int) -> Features:
        """What the image encoder made of `count` pictures, as Features.

        Raises:
            TypeError, ValueError: neither Features nor a `(regions, code)` pair, of another number, or without regions.
        """
        features = check_features(as_features(output, "image_encoder"), "image_encoder")
        if len(features.pooled) != count:
            raise ValueError(f"image_encoder: expected features of {count} images, got {len(features.pooled)}")
        if self._has_empty_row(features.mask, self._regions_seen):
            raise ValueError("image_encoder: expected at least one region of every image, got a mask without any")
        self._regions_seen = True
        return features

    def look_at_words(self, words: Sequence[str], vocabulary: Vocabulary) -> None:
        """Warn, once, of first captions that the matcher hardly knows: it was pretrained on others.

        Args:
            words: all words of the captions.
            vocabulary: the matcher's.
        """
        if self._words_seen:
            return
        self._words_seen = True
        unknown = [word for word in words if word not in vocabulary]
        if len(unknown) > FOREIGN_SHARE * len(words):
            some = ", ".join(list(dict.fromkeys(unknown))[:5])
            warnings.warn(
                f"captions: {len(unknown)} of the first {len(words)} words are unknown to the matcher ({some}), which "
                "was pretrained on other captions",
                stacklevel=3,
            )

    @staticmethod
    def _check_pictures(name: str, images: Tensor, like: Tensor | None) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"{name}: expected a floating-point tensor (B, 3, H, W), got {kind}")
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"{name}: expected shape (B, 3, H, W), got {tuple(images.shape)}")
        if like is None:
            return
        if images.device != like.device:
            raise ValueError(f"{name}: expected images on {like.device}, where the matcher is, got {images.device}")
        if images.dtype != like.dtype and not autocasts(images, like):
            outside = ", which autocast leaves as it is" if images.dtype == torch.float64 else ", outside autocast"
            raise TypeError(f"{name}: expected {like.dtype}, the matcher's dtype, got {images.dtype}{outside}")

    def _check_text(self, text: Features | None, terms: Sequence[str], fake: Tensor) -> Features:
        if text is None:
            raise ValueError(f"text: expected Features for the terms {needs(terms, 'vlm')}, got None")
        check_features(text, "text")
        if len(text.pooled) != len(fake):
            raise ValueError(f"text: expected {len(fake)} captions as there are images in fake, got {len(text.pooled)}")
        if text.local.device != fake.device:
            raise ValueError(f"text: expected features on {fake.device}, got {text.local.device}")
        if self._has_empty_row(text.mask, self._captions_seen):
            raise ValueError("text: expected at least one word in every caption, got an empty one")
        self._captions_seen = True
        return text.detach()

    @staticmethod
    def _has_empty_row(mask: Tensor, seen: bool) -> bool:
        # Asking a GPU at every step would stall it, so there the first batch alone is looked at.
        return (mask.device.type == "cpu" or not seen) and not bool(mask.any(1).all())

    def _in_range(self, images: Tensor, target: tuple[float, float]) -> Tensor:
        """Pictures of `image_range` in the encoder's range."""
        (low, high), (target_low, target_high) = self.image_range, target
        if (low, high) == (target_low, target_high):
            return images
        return (images - low) * ((target_high - target_low) / (high - low)) + target_low

    def _look_at_fake(self, fake: Tensor) -> None:
        """Warn of a first batch that seems to be of another range. A generator's values are never refused."""
        if self._fake_seen:
            return
        self._fake_seen = True
        (low, high), (least, most) = self.image_range, (float(value) for value in torch.aminmax(fake))
        what = f"fake: the first generated images have values from {least:.3g} to {most:.3g}"
        # On behalf of who calls the loss: past `check`, `forward` and the two of nn.Module's call.
        if low < 0 <= least < most:
            warnings.warn(
                f"{what}, none negative, where image_range is {self.image_range}: if theirs is (0, 1), pass "
                "image_range=(0, 1) and real images of that range",
                stacklevel=6,
            )
        elif least < 2 * low - high or most > 2 * high - low:
            warnings.warn(f"{what}, far outside of image_range {self.image_range}", stacklevel=6)

    def check_range(self, real: Tensor) -> None:
        """Compare real pictures with `image_range`, until a batch has told: uniform pictures fit any range."""
        if self._range_known:
            return
        low, high = self.image_range
        least, most = float(real.min()), float(real.max())
        # Comparisons with NaN are all false: it would pass for a batch of the right range.
        if math.isnan(least):
            raise ValueError(f"real: expected values in image_range {self.image_range}, got NaN")
        tolerance = 0.01 * (high - low)
        if least < low - tolerance or most > high + tolerance:
            raise ValueError(f"real: expected values in image_range {self.image_range}, got {least:.3g} to {most:.3g}")
        if least == most:
            return
        # Resizing overshoots: a few values beyond an end are no sign of another range.
        if low < 0 and least > -tolerance:
            raise ValueError(
                f"real: expected values in image_range {self.image_range}, got no negative value to speak of "
                f"({least:.3g} to {most:.3g}): pass image_range=(0, 1) if that is the images' range"
            )
        middle = (low + high) / 2
        if middle > 1 and most <= max(1.0, 2 * tolerance):
            raise ValueError(
                f"real: expected values in image_range {self.image_range}, got {least:.3g} to {most:.3g}: "
                "pass image_range=(0, 1), or whatever is the images' range"
            )
        self._range_known = True


def _check_class_ids(class_ids: Tensor | Sequence[int] | None, fake: Tensor) -> Tensor | None:
    if class_ids is None:
        return None
    ids = as_integers(class_ids, "class_ids")
    if ids.shape != (len(fake),):
        raise ValueError(f"class_ids: expected shape ({len(fake)},), got {tuple(ids.shape)}")
    return ids.to(fake.device, torch.int64, non_blocking=True)


def check_anchor(name: str, anchor: Features, image: Features) -> None:
    """Anchors must have the pictures' width and, once raised to at least float32, their dtype.

    Raises:
        TypeError, ValueError: they have not; the message begins with `name`.
    """
    if anchor.local.shape[-1] != image.local.shape[-1]:
        raise ValueError(
            f"{name}: expected features of width {image.local.shape[-1]} as the image encoder's, "
            f"got {anchor.local.shape[-1]}"
        )
    for given, expected in ((anchor.local, image.local), (anchor.pooled, image.pooled)):
        if torch.promote_types(given.dtype, torch.float32) != torch.promote_types(expected.dtype, torch.float32):
            raise TypeError(f"{name}: expected {expected.dtype} as the image encoder's features, got {given.dtype}")
