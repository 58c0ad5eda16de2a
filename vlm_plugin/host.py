"""The front door of the loss: everything that a host hands over is looked at here, once.

That is what a loss is built of, what it is called with, and what a host's own modules return. What is worth one look
alone (the range of the first pictures, the words of the first captions, masks that live on a GPU, which each look would
stall) is remembered by the door. Messages name the argument, what was expected and what came.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlm_plugin.checks import (
    as_integers,
    check_image_range,
    check_number,
    first_tensor,
    fits_dtype,
    is_image_batch,
    is_readable,
    is_transformed,
)
from vlm_plugin.features import Features, as_features, check_features
from vlm_plugin.matcher.identity import check_fingerprints, unwrapped, warn_if_untrained
from vlm_plugin.matcher.image_encoders import encode_checked
from vlm_plugin.matcher.vlm import VLM, check_vlm
from vlm_plugin.matcher.vocabulary import Vocabulary

TERMS = ("vlm_local", "vlm_global", "vlm_general", "vvm_local", "vvm_global", "vvm_general")
# How many batches' class ids on a GPU are looked at: each look waits for it.
LOOKS = 3
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
    """`(B,)` int64, where they were; rows of equal id are no negatives of each other."""


def half_of(term: str) -> str:
    """The half that a term belongs to: "vlm", whose anchors are captions, or "vvm", whose anchors are real images."""
    return term.split("_")[0]


def terms_of(half: str, terms: Iterable[str]) -> list[str]:
    """Those of `terms` that belong to a half."""
    return [term for term in terms if half_of(term) == half]


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
        check_vlm(vlm)
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


def check_numbers(**numbers: float) -> None:
    """Weights are finite numbers; sharpnesses and inverse temperatures, the gammas, lie above 0 too.

    Raises:
        TypeError, ValueError: one is not; the message begins with its name.
    """
    for name, value in numbers.items():
        check_number(name, value, positive=name.startswith("gamma"))


def freeze(part: nn.Module, *, training: bool = False) -> None:
    """Freeze a part of the loss and put it into eval mode, or training mode, as far as it is not so yet.

    Raises:
        ValueError: a weight that cannot be frozen, or through which no gradient would flow to the pictures.
    """
    # Not `requires_grad_`: torch.func refuses it within what it transforms, whatever it would change.
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            if is_transformed(parameter) or not parameter.is_leaf:
                raise ValueError(
                    f"{name}: expected a frozen weight of the matcher, got one that is differentiated: leave the "
                    "loss's weights out of what torch.func is given, or hold the loss beside the generator"
                )
            parameter.requires_grad = False
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        for name, tensor in itertools.chain(part.named_parameters(), part.named_buffers()):
            if tensor.is_inference():
                raise ValueError(
                    f"{name}: expected an ordinary tensor, got one made under torch.inference_mode, through which no "
                    "gradient flows: build, cast and move the matcher outside of it"
                )
    if any(module.training is not training for module in part.modules()):
        part.train(training)


def check_augment(augment: Callable[[Tensor], Tensor] | None) -> None:
    """Refuse an augmentation that cannot be called.

    Raises:
        TypeError: it is something else.
    """
    if augment is not None and not callable(augment):
        raise TypeError(f"augment: expected a function or module of images, got {type(augment).__name__}")


def check_trained(parts: Parts, terms: Sequence[str]) -> None:
    """Refuse a scorer that was trained on other encoders, and warn of one that general terms need and of which nothing
    says that it was trained. The warning is on behalf of the caller's caller.

    Raises:
        ValueError: the message names scorer and encoder.
    """
    if parts.scorer is None:
        return
    otherwise = "allow_other_encoders=True"
    check_fingerprints(parts.scorer, otherwise, image_encoder=parts.image_encoder, text_encoder=parts.text_encoder)
    if general := [term for term in terms if term.endswith("_general")]:
        needed = f"{', '.join(general)} are on"
        warn_if_untrained(parts.scorer, needed, f"VLM.stamp() or {otherwise}", stacklevel=3)


class FrontDoor:
    """Looks at what a host hands to the loss, and remembers what it need not look at again.

    Args:
        image_range: lowest and highest value of the host's pictures.
        vlm: the matcher, whose vocabulary captions are read with; None where a loss was built from modules.

    Raises:
        ValueError: no such range.
    """

    def __init__(self, image_range: tuple[float, float], vlm: VLM | None = None) -> None:
        self.image_range = check_image_range(image_range)
        self.vlm = vlm
        self._range_known = False
        self._fake_seen = False
        self._words_seen = False
        self._captions_seen = False
        self._regions_seen = False
        self._ids_seen = 0
        self._alone_told = False

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
        text = self._check_text(text, terms_of("vlm", terms), fake)
        real = self._check_real(real, terms_of("vvm", terms), fake, fake if weight is None else weight)
        ids = _check_class_ids(class_ids, fake)
        target = getattr(unwrapped(encoder), "input_range", (-1.0, 1.0))
        return Given(self._in_range(fake, target), text, None if real is None else self._in_range(real, target), ids)

    def view(self, augment: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
        """What an augmentation makes of the generated pictures.

        Raises:
            ValueError: something else than as many pictures.
        """
        view = augment(fake)
        if not isinstance(view, Tensor) or view.shape[:2] != fake.shape[:2] or view.dim() != 4:
            got = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(f"augment: expected images ({len(fake)}, 3, H, W) of its {len(fake)} images, got {got}")
        return view

    def encoded(self, encoder: nn.Module, images: Tensor, *, checked: bool) -> Features:
        """What an image encoder makes of pictures, as Features.

        Args:
            encoder: one of ours, or any that returns Features or a `(regions, code)` pair.
            images: pictures in the encoder's range.
            checked: `check` has looked at them; otherwise an encoder of ours does.

        Raises:
            TypeError, ValueError: neither of the two, of another number of pictures, or without regions.
        """
        output = encode_checked(encoder, images) if checked else encoder(images)
        features = check_features(as_features(output, "image_encoder"), "image_encoder")
        if len(features.pooled) != len(images):
            raise ValueError(f"image_encoder: expected features of {len(images)} images, got {len(features.pooled)}")
        if self._has_empty_row(features.mask, self._regions_seen):
            raise ValueError("image_encoder: expected at least one region of every image, got a mask without any")
        self._regions_seen = True
        return features.without_padding()

    def tokenise(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions as ids `(B, T)` of the matcher's own vocabulary, and their lengths `(B,)`.

        The first ones are looked at for words that the matcher does not know, on behalf of the caller's caller.

        Raises:
            TypeError: `captions` is no list of strings.
            ValueError: there is no vocabulary, or a caption has no word of it.
        """
        if self.vlm is None:
            raise ValueError(
                "encode_text: this loss was built from modules, without a vocabulary: "
                "use encode_tokens or text_features, or build it from a VLM"
            )
        words: list[str] = []
        tokens, lengths = self.vlm.vocabulary.encode_batch(captions, self.vlm.max_words, words=words)
        self._look_at_words(words, self.vlm.vocabulary)
        return tokens, lengths

    def check_text_encoder(
        self,
        text_encoder: nn.Module | None,
        vocabulary: Vocabulary | Mapping[int, str] | str | os.PathLike[str] | None,
    ) -> None:
        """There has to be one for ids, and whatever made them has to be the matcher's own vocabulary.

        Raises:
            OSError, TypeError: `vocabulary` cannot be read, or is something else.
            ValueError: it is another, or there is none to compare it with; or there is no text encoder.
        """
        if vocabulary is not None:
            if self.vlm is None:
                raise ValueError(
                    "vocabulary: expected none, as this loss was built from modules, without a vocabulary to compare "
                    f"it with, got {type(vocabulary).__name__}: build the loss from a VLM"
                )
            self.vlm.check_vocabulary(vocabulary)
        if text_encoder is None:
            raise ValueError("encode_tokens: this loss has no text_encoder: give it one, or use text_features")

    @staticmethod
    def _check_pictures(name: str, images: Tensor, like: Tensor | None) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"{name}: expected a floating-point tensor (B, 3, H, W), got {kind}")
        if not is_image_batch(images):
            raise ValueError(f"{name}: expected shape (B, 3, H, W), got {tuple(images.shape)}")
        if like is None:
            return
        if images.device != like.device:
            raise ValueError(f"{name}: expected images on {like.device}, where the matcher is, got {images.device}")
        if not fits_dtype(images, like):
            outside = ", which autocast leaves as it is" if images.dtype == torch.float64 else ", outside autocast"
            raise TypeError(f"{name}: expected {like.dtype}, the matcher's dtype, got {images.dtype}{outside}")

    def _check_text(self, text: Features | None, asked: Sequence[str], fake: Tensor) -> Features | None:
        """The captions' features without gradient, for the terms that ask for them; None where none does."""
        if not asked:
            return None
        if text is None:
            raise ValueError(f"text: expected Features for the terms {asked}, got None")
        check_features(text, "text")
        if len(text.pooled) != len(fake):
            raise ValueError(f"text: expected {len(fake)} captions as there are images in fake, got {len(text.pooled)}")
        if text.local.device != fake.device:
            raise ValueError(f"text: expected features on {fake.device}, got {text.local.device}")
        if self._has_empty_row(text.mask, self._captions_seen):
            raise ValueError("text: expected at least one word in every caption, got an empty one")
        self._captions_seen = True
        return text.detach().without_padding()

    def _check_real(self, real: Tensor | None, asked: Sequence[str], fake: Tensor, like: Tensor) -> Tensor | None:
        """The real pictures, for the terms that ask for them; None where none does. They are looked at wherever they
        are given: their range tells that of the generated ones."""
        if real is not None:
            self._check_pictures("real", real, like)
            if len(real) != len(fake):
                raise ValueError(f"real: expected {len(fake)} images as in fake, got {len(real)}")
            self.check_range(real.detach())
        elif asked:
            raise ValueError(f"real: expected images (B, 3, H, W) for the terms {asked}, got None")
        return real if asked else None

    @staticmethod
    def _has_empty_row(mask: Tensor, seen: bool) -> bool:
        # Asking a GPU at every step would stall it, so there the first batch alone is looked at.
        return (mask.device.type == "cpu" or not seen) and is_readable(mask) and not bool(mask.any(1).all())

    def _in_range(self, images: Tensor, target: tuple[float, float]) -> Tensor:
        """Pictures of `image_range` in the encoder's range."""
        (low, high), (target_low, target_high) = self.image_range, target
        if (low, high) == (target_low, target_high):
            return images
        return (images - low) * ((target_high - target_low) / (high - low)) + target_low

    def _look_at_fake(self, fake: Tensor) -> None:
        """Warn of a first batch that seems to be of another range. A generator's values are never refused."""
        if self._fake_seen or not is_readable(fake):
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

    def _look_at_words(self, words: Sequence[str], vocabulary: Vocabulary) -> None:
        """Warn of first captions that the matcher hardly knows: it was pretrained on others."""
        if self._words_seen:
            return
        self._words_seen = True
        unknown = [word for word in words if word not in vocabulary]
        if len(unknown) > FOREIGN_SHARE * len(words):
            some = ", ".join(list(dict.fromkeys(unknown))[:5])
            # On behalf of who calls the loss: past `tokenise` and `encode_text`.
            warnings.warn(
                f"captions: {len(unknown)} of the first {len(words)} words are unknown to the matcher ({some}), which "
                "was pretrained on other captions",
                stacklevel=4,
            )

    def look_at_rows(self, terms: Sequence[str], rows: int, ids: Tensor | None) -> None:
        """Warn, once, of a batch in which no row has a negative: terms that compare rows are then 0.

        Args:
            terms: the terms that are on.
            rows: how many rows there are, over all ranks.
            ids: their groups; None where each is one of its own.
        """
        alone = [term for term in terms if not term.endswith("_general")]
        if self._alone_told or not alone or torch.compiler.is_compiling():
            return
        if rows > 1 and not self._all_alike(ids):
            return
        self._alone_told = True
        what = "fake: one row" if rows == 1 else f"class_ids: {rows} rows of one class"
        # On behalf of who calls the loss: past `_gather_all`, `forward` and the two of nn.Module's call.
        warnings.warn(
            f"{what}, so no row of this batch has a negative, and {', '.join(alone)} are 0 without gradient: give "
            "batches of several rows and classes; where each picture is a thing of its own, leave class_ids out",
            stacklevel=6,
        )

    def _all_alike(self, ids: Tensor | None) -> bool:
        if ids is None or (ids.device.type != "cpu" and self._ids_seen >= LOOKS) or not is_readable(ids):
            return False
        self._ids_seen += 1
        return bool((ids == ids[0]).all())

    def check_range(self, real: Tensor) -> None:
        """Compare real pictures with `image_range`, until a batch has told: uniform pictures fit any range."""
        if self._range_known or not is_readable(real):
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
    return ids.to(torch.int64)


def check_anchors(anchors: Mapping[str, Features], image: Features) -> None:
    """Refuse anchors of another width than the pictures' or, once raised to at least float32, of another dtype.

    Args:
        anchors: "vlm" the captions, "vvm" the real pictures; whichever there are.
        image: the generated pictures.

    Raises:
        TypeError, ValueError: the message begins with the argument that the anchors come from.
    """
    for half, anchor in anchors.items():
        name = {"vlm": "text", "vvm": "real"}[half]
        if anchor.local.shape[-1] != image.local.shape[-1]:
            raise ValueError(
                f"{name}: expected features of width {image.local.shape[-1]} as the image encoder's, "
                f"got {anchor.local.shape[-1]}"
            )
        for given, expected in ((anchor.local, image.local), (anchor.pooled, image.pooled)):
            if torch.promote_types(given.dtype, torch.float32) != torch.promote_types(expected.dtype, torch.float32):
                raise TypeError(f"{name}: expected {expected.dtype} as the image encoder's features, got {given.dtype}")
