"""The dual vision-language matching loss: what a GAN imports."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm_plugin import distributed
from vlm_plugin.checks import as_integers, check_image_range, check_number, first_tensor
from vlm_plugin.features import Features, as_features, check_features
from vlm_plugin.host import check_fit, check_host_images, warn_of_unknown_words
from vlm_plugin.matcher.identity import check_fingerprints, unwrapped, warn_if_untrained
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.matching import contrastive_loss, general_loss, global_scores, local_scores

TERMS = ("vlm_local", "vlm_global", "vlm_general", "vvm_local", "vvm_global", "vvm_general")


class LossOutput(NamedTuple):
    """What `DualVLMLoss` returns.

    Attributes:
        total: scalar with gradient, `lambda_vlm * sum of vlm terms + lambda_vvm * sum of vvm terms`.
        terms: name -> detached, unweighted scalar, for each term that is switched on.
    """

    total: Tensor
    terms: dict[str, Tensor]


class DualVLMLoss(nn.Module):
    """Scores generated images against their captions and against real images, with a frozen matcher.

    `total = lambda_vvm * (vvm_local + vvm_global + vvm_general) + lambda_vlm * (vlm_local + vlm_global + vlm_general)`

    Everything inside is frozen for good: no parameter gradient, and eval mode even after `parent.train()`. Captions and
    real images are anchors and carry no gradient; the generated images do. A generator that holds this loss as a
    submodule has the matcher's weights in its own `state_dict()`: hold the loss beside the generator, not inside it.

    Source: the two halves and their sum are the paper's (lambda1 weighs visual-visual, lambda2 textual-visual); the
    posterior, its temperatures and the generator form of the general term are ours, see docs/method.md.

    Args:
        vlm: the matcher. Or leave it out and give the modules a host already holds:
        image_encoder: maps images to `Features`, or to DAMSM's `(regions, code)` pair. It is given
            images in its `input_range`, [-1, 1] if it has none, and may be wrapped (torch.compile, DataParallel).
        scorer: matching score block; may be left out when no general term is on.
        text_encoder: maps `(tokens, lengths)` to `Features`; only `encode_tokens` needs it.
        lambda_vvm: weight of the visual-visual half (paper: lambda1). A plain attribute, so that a host may ramp it.
        lambda_vlm: weight of the textual-visual half (paper: lambda2). Likewise.
        gamma1: sharpness of a local vector's attention over regions.
        gamma2: sharpness of the sum over local vectors.
        gamma3: inverse temperature of the global terms.
        gamma3_local: inverse temperature of the local terms; `gamma2 * gamma3` when left out, which gives the sharpness
            of the published DAMSM code in spite of the factor 1 / gamma2 in the local score.
        terms: the names to switch on, any subset of `TERMS`. What is off is neither computed nor reported.
        image_range: lowest and highest value of the host's images; they are mapped to the encoder's own range.
        augment: applied to the generated images (in the encoder's range, [-1, 1]) before the matcher sees them; must be
            differentiable. A module stays in training mode.
        process_group: where negatives come from when torch.distributed is initialised; all ranks when None.
        allow_other_encoders: accept a scorer that was trained on other encoders than these, and, without a warning, one
            of which nothing says that it was trained.

    Raises:
        ValueError, TypeError: arguments that do not fit together; the message names them.
    """

    def __init__(
        self,
        vlm: VLM | None = None,
        *,
        image_encoder: nn.Module | None = None,
        scorer: MatchingScoreBlock | None = None,
        text_encoder: nn.Module | None = None,
        lambda_vvm: float,
        lambda_vlm: float,
        gamma1: float = 4.0,
        gamma2: float = 5.0,
        gamma3: float = 10.0,
        gamma3_local: float | None = None,
        terms: Iterable[str] = TERMS,
        image_range: tuple[float, float] = (-1.0, 1.0),
        augment: Callable[[Tensor], Tensor] | None = None,
        process_group: dist.ProcessGroup | None = None,
        allow_other_encoders: bool = False,
    ) -> None:
        super().__init__()
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
        if augment is not None and not callable(augment):
            raise TypeError(f"augment: expected a function or module of images, got {type(augment).__name__}")
        self.terms = _check_terms(terms)
        general = [term for term in self.terms if term.endswith("_general")]
        if scorer is None and general:
            raise ValueError(
                f"terms: {', '.join(general)} need a trained scorer, which this matcher has not: "
                "leave them out of `terms`, or train one (vlm-plugin pretrain)"
            )
        image_range = check_image_range(image_range)
        for name, value in (("lambda_vvm", lambda_vvm), ("lambda_vlm", lambda_vlm)):
            check_number(name, value)
        for name, value in (("gamma1", gamma1), ("gamma2", gamma2), ("gamma3", gamma3)):
            check_number(name, value, positive=True)
        gamma3_local = gamma2 * gamma3 if gamma3_local is None else gamma3_local
        check_number("gamma3_local", gamma3_local, positive=True)
        if scorer is not None and not allow_other_encoders:
            otherwise = "allow_other_encoders=True"
            check_fingerprints(scorer, otherwise, image_encoder=image_encoder, text_encoder=text_encoder)
            if general:
                warn_if_untrained(scorer, f"{', '.join(general)} are on", f"VLM.stamp() or {otherwise}")
        self.image_encoder = image_encoder
        self.scorer = scorer
        self.text_encoder = text_encoder
        # The matcher's parts are submodules already; keeping the VLM in a tuple avoids listing them twice.
        self._vlm = (vlm,)
        self.lambda_vvm, self.lambda_vlm = lambda_vvm, lambda_vlm
        self.gamma1, self.gamma2, self.gamma3 = gamma1, gamma2, gamma3
        self.gamma3_local = gamma3_local
        self.image_range = image_range
        self.augment = augment
        self.process_group = process_group
        self._range_checked = False
        self._text_checked = False
        self._regions_checked = False
        self._fake_seen = False
        self._captions_seen = False
        self._freeze()

    def extra_repr(self) -> str:
        return f"lambda_vvm={self.lambda_vvm}, lambda_vlm={self.lambda_vlm}, terms={self.terms}"

    def train(self, mode: bool = True) -> DualVLMLoss:
        """Stays in eval mode whatever `mode` says: a frozen matcher's BatchNorm and dropout must never wake up."""
        super().train(False)
        # No part of the matcher: dropout, for one, is an augmentation while it trains alone.
        if isinstance(self.augment, nn.Module):
            self.augment.train()
        return self

    def _freeze(self) -> None:
        # Again at every call: a host may have called requires_grad_() or train() on a module that it shares with us.
        self.requires_grad_(False)
        self.train(False)

    def encode_text(self, captions: Sequence[str]) -> Features:
        """Anchors from strings, tokenised with the matcher's own vocabulary.

        Args:
            captions: B strings.

        Returns:
            Features without gradient, on the loss's device.

        Raises:
            ValueError: this loss wraps bare modules (no vocabulary), or a caption has no known word.
        """
        vlm = self._vlm[0]
        if vlm is None:
            raise ValueError(
                "encode_text: this loss was built from modules, without a vocabulary: "
                "use encode_tokens or text_features, or build it from a VLM"
            )
        tokens, lengths = vlm.vocabulary.encode_batch(captions, vlm.max_words)
        if not self._captions_seen:
            self._captions_seen = True
            warn_of_unknown_words(captions, vlm.vocabulary)
        return self.encode_tokens(tokens, lengths)

    @torch.no_grad()
    def encode_tokens(
        self,
        tokens: Tensor,
        lengths: Tensor,
        vocabulary: Vocabulary | Mapping[int, str] | str | os.PathLike[str] | None = None,
    ) -> Features:
        """Anchors from ids of the matcher's own vocabulary.

        Args:
            tokens: `(B, T)` integers, padded with 0.
            lengths: `(B,)` integers, on any device.
            vocabulary: what made the ids, where the host knows it: a Vocabulary, a dict `ixtoword` of id to word, or
                the path of a captions pickle. Passing the same one at every step costs nothing.

        Returns:
            Features without gradient, on the loss's device.

        Raises:
            OSError: the file `vocabulary` cannot be opened.
            TypeError: `vocabulary` is something else.
            ValueError: no text encoder here, a `vocabulary` other than the matcher's (or none here to compare it with),
                an id outside the vocabulary, an empty caption.
        """
        if vocabulary is not None:
            vlm = self._vlm[0]
            if vlm is None:
                raise ValueError(
                    "vocabulary: expected none, as this loss was built from modules, without a vocabulary to compare "
                    f"it with, got {type(vocabulary).__name__}: build the loss from a VLM"
                )
            vlm.check_vocabulary(vocabulary)
        if self.text_encoder is None:
            raise ValueError("encode_tokens: this loss has no text_encoder: give it one, or use text_features")
        self._freeze()
        weight = first_tensor(self.text_encoder, self.image_encoder)
        if isinstance(tokens, Tensor) and weight is not None:
            tokens = tokens.to(weight.device)
        with torch.autocast("cpu" if weight is None else weight.device.type, enabled=False):
            return check_features(self.text_encoder(tokens, lengths), "text_encoder").detach()

    def forward(
        self,
        fake: Tensor,
        text: Features | None = None,
        real: Tensor | None = None,
        *,
        class_ids: Tensor | Sequence[int] | None = None,
    ) -> LossOutput:
        """The loss of a batch of generated images.

        Args:
            fake: `(B, 3, H, W)` generated images in `image_range`; they carry the gradient.
            text: the captions' Features, from `encode_text`, `encode_tokens` or `text_features`; may be left out when
                no vlm term is on.
            real: `(B, 3, H, W)` real images in `image_range`, row i the one that caption i belongs to; may be left out
                when no vvm term is on. Wherever they are given their values are checked against `image_range` once,
                which is the one guard against generated images of another range: a host with vlm terms alone should
                pass them at its first step at least.
            class_ids: `(B,)` any integer grouping (tensor, numpy array or list): rows of equal id are no negatives of
                each other. Without it every other row is a negative. On every rank or on none.

        With torch.distributed every rank needs as many rows as the others. General terms alone compare no rows and
        do not ask; their mean over ranks is then not that over rows.

        Returns:
            `(total, terms)`.

        Raises:
            ValueError, TypeError: wrong shape, dtype, device or range, `text` or `real` missing; the message names the
                argument, what was expected and what came.
        """
        self._freeze()
        weight = first_tensor(self.image_encoder)
        check_host_images("fake", fake, weight)
        self._look_at_fake(fake.detach())
        batch, device = len(fake), fake.device
        anchors: dict[str, tuple[Features, str]] = {}
        if self._needs("vlm"):
            anchors["vlm"] = (self._check_text(text, batch, device), "caption")
        if real is not None:
            check_host_images("real", real, fake if weight is None else weight)
            if len(real) != batch:
                raise ValueError(f"real: expected {batch} images as in fake, got {len(real)}")
            self._check_range(real)
        if self._needs("vvm"):
            if real is None:
                raise ValueError(f"real: expected images (B, 3, H, W) for the terms {self._needs('vvm')}, got None")
            with torch.no_grad():
                anchors["vvm"] = (self._encode(self._to_encoder_range(real)), "image")
        ids = self._check_class_ids(class_ids, batch, device)

        fake = self._to_encoder_range(fake)
        image = self._encode(self._augmented(fake))
        every_image = self._gather(image, self.terms, class_ids=ids is not None)
        # After the features, whose gathering makes sure that every rank has as many rows, and ids or none.
        contrastive = any(not term.endswith("_general") for term in self.terms)
        groups = (ids, distributed.gather(ids, self.process_group)) if contrastive and ids is not None else None

        values: dict[str, Tensor] = {}
        for half, (anchor, kind) in anchors.items():
            check_fit("text" if half == "vlm" else "real", anchor, image)
            needed = self._needs(half)
            every_anchor = self._gather(anchor, needed)
            if f"{half}_local" in needed:
                values[f"{half}_local"] = self._posterior(
                    lambda i, a: local_scores(i, a, self.gamma1, self.gamma2),
                    self.gamma3_local,
                    (image, every_image),
                    (anchor, every_anchor),
                    groups,
                )
            if f"{half}_global" in needed:
                values[f"{half}_global"] = self._posterior(
                    global_scores, self.gamma3, (image, every_image), (anchor, every_anchor), groups
                )
            if f"{half}_general" in needed:
                values[f"{half}_general"] = general_loss(self.scorer(image, anchor, kind))

        weights = {"vlm": self.lambda_vlm, "vvm": self.lambda_vvm}
        total = sum(weights[name[:3]] * value for name, value in values.items())
        return LossOutput(total, {name: values[name].detach() for name in self.terms})

    def _posterior(
        self,
        scores: Callable[[Features, Features], Tensor],
        temperature: float,
        image: tuple[Features, Features],
        anchor: tuple[Features, Features],
        groups: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """-log P(A_i|I_i) - log P(I_i|A_i), averaged over this rank's rows, candidates from every rank."""
        (own_images, all_images), (own_anchors, all_anchors) = image, anchor
        by_image = temperature * scores(own_images, all_anchors)
        # With one process the second matrix is the first one transposed.
        by_anchor = by_image.T if all_images is own_images else temperature * scores(all_images, own_anchors).T
        batch = len(own_images.pooled)
        first = batch * distributed.rank(self.process_group)
        positives = torch.arange(first, first + batch, device=by_image.device)
        excluded = None if groups is None else groups[0][:, None] == groups[1][None, :]
        return contrastive_loss(by_image, positives, excluded) + contrastive_loss(by_anchor, positives, excluded)

    def _needs(self, half: str) -> list[str]:
        return [term for term in self.terms if term.startswith(half)]

    def _gather(self, features: Features, terms: Sequence[str], **given: bool) -> Features:
        """Every rank's features, as far as these terms compare with other rows."""
        if all(term.endswith("_general") for term in terms):
            return features
        local = any(term.endswith("_local") for term in terms)
        return distributed.gather_features(features, self.process_group, local=local, **given)

    def _augmented(self, fake: Tensor) -> Tensor:
        if self.augment is None:
            return fake
        views = self.augment(fake)
        if not isinstance(views, Tensor) or views.shape[:2] != fake.shape[:2] or views.dim() != 4:
            got = tuple(views.shape) if isinstance(views, Tensor) else type(views).__name__
            raise ValueError(f"augment: expected images ({len(fake)}, 3, H, W) of its {len(fake)} images, got {got}")
        return views

    def _encode(self, images: Tensor) -> Features:
        features = check_features(as_features(self.image_encoder(images), "image_encoder"), "image_encoder")
        if len(features.pooled) != len(images):
            raise ValueError(f"image_encoder: expected features of {len(images)} images, got {len(features.pooled)}")
        # As for captions: each look at a GPU would stall it.
        if features.mask.device.type == "cpu" or not self._regions_checked:
            if not bool(features.mask.any(1).all()):
                raise ValueError("image_encoder: expected at least one region of every image, got a mask without any")
            self._regions_checked = True
        return features

    def _to_encoder_range(self, images: Tensor) -> Tensor:
        low, high = self.image_range
        target_low, target_high = getattr(unwrapped(self.image_encoder), "input_range", (-1.0, 1.0))
        if (low, high) == (target_low, target_high):
            return images
        return (images - low) * ((target_high - target_low) / (high - low)) + target_low

    def _check_text(self, text: Features | None, batch: int, device: torch.device) -> Features:
        if text is None:
            raise ValueError(f"text: expected Features for the terms {self._needs('vlm')}, got None")
        check_features(text, "text")
        if len(text.pooled) != batch:
            raise ValueError(f"text: expected {batch} captions as there are images in fake, got {len(text.pooled)}")
        if text.local.device != device:
            raise ValueError(f"text: expected features on {device}, got {text.local.device}")
        # Asking a GPU on every step would stall it, so there the first batch alone is looked at.
        if text.mask.device.type == "cpu" or not self._text_checked:
            if not bool(text.mask.any(1).all()):
                raise ValueError("text: expected at least one word in every caption, got an empty one")
            self._text_checked = True
        return text.detach()

    def _check_class_ids(
        self, class_ids: Tensor | Sequence[int] | None, batch: int, device: torch.device
    ) -> Tensor | None:
        if class_ids is None:
            return None
        ids = as_integers(class_ids, "class_ids")
        if ids.shape != (batch,):
            raise ValueError(f"class_ids: expected shape ({batch},), got {tuple(ids.shape)}")
        return ids.to(device, torch.int64, non_blocking=True)

    def _look_at_fake(self, fake: Tensor) -> None:
        """Warn of a first batch that seems to be of another range. A generator's values are never refused."""
        if self._fake_seen:
            return
        self._fake_seen = True
        (low, high), (least, most) = self.image_range, (float(value) for value in torch.aminmax(fake))
        what = f"fake: the first generated images have values from {least:.3g} to {most:.3g}"
        if low < 0 <= least < most:
            warnings.warn(
                f"{what}, none negative, where image_range is {self.image_range}: if theirs is (0, 1), pass "
                "image_range=(0, 1) and real images of that range",
                stacklevel=5,
            )
        elif least < 2 * low - high or most > 2 * high - low:
            warnings.warn(f"{what}, far outside of image_range {self.image_range}", stacklevel=5)

    def _check_range(self, real: Tensor) -> None:
        """Compare real images with `image_range`, until a batch has told: uniform pictures fit any range."""
        if self._range_checked:
            return
        low, high = self.image_range
        real = real.detach()
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
        self._range_checked = True


def _check_terms(terms: Iterable[str]) -> tuple[str, ...]:
    if isinstance(terms, str) or not isinstance(terms, Iterable):
        given = f"the string {terms!r}" if isinstance(terms, str) else type(terms).__name__
        raise TypeError(f"terms: expected a collection of names, got {given}")
    terms = set(terms)
    if unknown := sorted(terms - set(TERMS)):
        raise ValueError(f"terms: expected names of {TERMS}, got {unknown}")
    if not terms:
        raise ValueError(f"terms: expected at least one of {TERMS}, got none")
    return tuple(name for name in TERMS if name in terms)
