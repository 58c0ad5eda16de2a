"""The dual vision-language matching loss: what a GAN imports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm_plugin import distributed
from vlm_plugin.checks import check_number, first_tensor
from vlm_plugin.features import Features, check_features
from vlm_plugin.host import TERMS, FrontDoor, check_anchor, check_augment, check_parts, check_terms, needs
from vlm_plugin.matcher.identity import check_fingerprints, unwrapped, warn_if_untrained
from vlm_plugin.matcher.image_encoders import ImageEncoder
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.matching import contrastive_loss, general_loss, global_scores, local_scores

__all__ = ["TERMS", "DualVLMLoss", "LossOutput"]


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
        parts = check_parts(vlm, image_encoder, scorer, text_encoder)
        self.terms = check_terms(terms, has_scorer=parts.scorer is not None)
        check_number("lambda_vvm", lambda_vvm)
        check_number("lambda_vlm", lambda_vlm)
        check_number("gamma1", gamma1, positive=True)
        check_number("gamma2", gamma2, positive=True)
        check_number("gamma3", gamma3, positive=True)
        gamma3_local = gamma2 * gamma3 if gamma3_local is None else gamma3_local
        check_number("gamma3_local", gamma3_local, positive=True)
        if parts.scorer is not None and not allow_other_encoders:
            otherwise = "allow_other_encoders=True"
            encoders = {"image_encoder": parts.image_encoder, "text_encoder": parts.text_encoder}
            check_fingerprints(parts.scorer, otherwise, **encoders)
            if general := [term for term in self.terms if term.endswith("_general")]:
                warn_if_untrained(parts.scorer, f"{', '.join(general)} are on", f"VLM.stamp() or {otherwise}")
        self.image_encoder, self.scorer, self.text_encoder = parts
        # The matcher's parts are submodules already; keeping the VLM in a tuple avoids listing them twice.
        self._vlm = (vlm,)
        self._door = FrontDoor(image_range)
        self.lambda_vvm, self.lambda_vlm = lambda_vvm, lambda_vlm
        self.gamma1, self.gamma2, self.gamma3, self.gamma3_local = gamma1, gamma2, gamma3, gamma3_local
        self.augment = check_augment(augment)
        self.process_group = process_group
        self._freeze()

    @property
    def image_range(self) -> tuple[float, float]:
        """Lowest and highest value of the host's images."""
        return self._door.image_range

    def extra_repr(self) -> str:
        return f"lambda_vvm={self.lambda_vvm}, lambda_vlm={self.lambda_vlm}, terms={self.terms}"

    def train(self, mode: bool = True) -> DualVLMLoss:
        """Stays in eval mode whatever `mode` says: a frozen matcher's BatchNorm and dropout must never wake up."""
        super().train(False)
        # No part of the matcher: dropout, for one, is an augmentation while it trains alone.
        if isinstance(self.augment, nn.Module):
            self.augment.train()
        return self

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
        fake, text, real, ids = self._door.check(self.image_encoder, self.terms, fake, text, real, class_ids)

        # The real images' features carry no gradient, as the captions' do not.
        with torch.no_grad():
            picture = None if real is None else self._encode(real)
        image = self._encode(self._view(fake))
        every_image = self._gather(image, self.terms, class_ids=ids is not None)
        groups = self._groups(ids)

        values: dict[str, Tensor] = {}
        if needs(self.terms, "vlm"):
            values |= self._half("vlm", image, every_image, text, groups)
        if needs(self.terms, "vvm"):
            values |= self._half("vvm", image, every_image, picture, groups)
        weights = {"vlm": self.lambda_vlm, "vvm": self.lambda_vvm}
        total = sum(weights[name[:3]] * value for name, value in values.items())
        return LossOutput(total, {name: values[name].detach() for name in self.terms})

    def _half(
        self, half: str, image: Features, every_image: Features, anchor: Features, groups: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """The terms of one half that are on: local, global and general matching of the images with their anchors."""
        check_anchor("text" if half == "vlm" else "real", anchor, image)
        on = needs(self.terms, half)
        every_anchor = self._gather(anchor, on)
        images, anchors = (image, every_image), (anchor, every_anchor)
        values: dict[str, Tensor] = {}
        if f"{half}_local" in on:
            values[f"{half}_local"] = self._posterior(
                lambda i, a: local_scores(i, a, self.gamma1, self.gamma2), self.gamma3_local, images, anchors, groups
            )
        if f"{half}_global" in on:
            values[f"{half}_global"] = self._posterior(global_scores, self.gamma3, images, anchors, groups)
        if f"{half}_general" in on:
            kind = "caption" if half == "vlm" else "image"
            values[f"{half}_general"] = general_loss(self.scorer(image, anchor, kind))
        return values

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

    def _groups(self, ids: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """This rank's groups and every rank's. After the features, whose gathering makes sure that every rank has as
        many rows, and ids or none."""
        contrastive = any(not term.endswith("_general") for term in self.terms)
        return (ids, distributed.gather(ids, self.process_group)) if contrastive and ids is not None else None

    def _gather(self, features: Features, terms: Sequence[str], **given: bool) -> Features:
        """Every rank's features, as far as these terms compare with other rows."""
        if all(term.endswith("_general") for term in terms):
            return features
        local = any(term.endswith("_local") for term in terms)
        return distributed.gather_features(features, self.process_group, local=local, **given)

    def _view(self, fake: Tensor) -> Tensor:
        """The generated images as the matcher sees them."""
        return fake if self.augment is None else self._door.check_views(self.augment(fake), fake)

    def _encode(self, images: Tensor) -> Features:
        # An encoder of ours need not look again at what the door has looked at.
        checked = {"checked": True} if isinstance(unwrapped(self.image_encoder), ImageEncoder) else {}
        return self._door.check_encoded(self.image_encoder(images, **checked), len(images))

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
        words: list[str] = []
        tokens, lengths = vlm.vocabulary.encode_batch(captions, vlm.max_words, words=words)
        self._door.look_at_words(words, vlm.vocabulary)
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
