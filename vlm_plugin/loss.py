"""The dual vision-language matching loss: what a GAN imports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm_plugin import distributed
from vlm_plugin.checks import first_tensor, without_autocast
from vlm_plugin.features import Features, check_features
from vlm_plugin.host import (
    TERMS,
    FrontDoor,
    check_anchors,
    check_augment,
    check_numbers,
    check_parts,
    check_terms,
    check_trained,
    freeze,
    half_of,
    terms_of,
)
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


class Rows(NamedTuple):
    """Features of this rank's rows, and of every rank's: with one process the very same object."""

    own: Features
    every: Features


# Attributes that are numbers: a host may set them between two calls.
NUMBERS = ("lambda_vvm", "lambda_vlm", "gamma1", "gamma2", "gamma3", "gamma3_local")
# What the scorer calls the anchors of a half.
KINDS = {"vlm": "caption", "vvm": "image"}


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
        self.image_encoder, self.scorer, self.text_encoder = parts
        self.terms = terms
        self._door = FrontDoor(image_range, vlm)
        self.lambda_vvm, self.lambda_vlm = lambda_vvm, lambda_vlm
        self.gamma1, self.gamma2, self.gamma3 = gamma1, gamma2, gamma3
        self.gamma3_local = gamma2 * gamma3 if gamma3_local is None else gamma3_local
        self.augment = augment
        if not allow_other_encoders:
            check_trained(parts, self.terms)
        self.process_group = process_group
        self._freeze()

    @property
    def image_range(self) -> tuple[float, float]:
        """Lowest and highest value of the host's images."""
        return self._door.image_range

    def __setattr__(self, name: str, value: object) -> None:
        # What a host may change between two calls is looked at as in the constructor.
        if name in NUMBERS:
            check_numbers(**{name: value})
        elif name == "augment":
            check_augment(value)
        elif name == "terms":
            value = check_terms(value, has_scorer=self.scorer is not None)
        super().__setattr__(name, value)

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

        image, anchors = self._encode_all(fake, text, real)
        images, anchors, excluded = self._gather_all(image, anchors, ids)
        values = {name: self._term(name, images, anchors, excluded) for name in self.terms}
        return LossOutput(self._total(values, fake), {name: value.detach() for name, value in values.items()})

    def _total(self, values: Mapping[str, Tensor], fake: Tensor) -> Tensor:
        """The weighted sum. A term of weight 0 is no part of it: 0 times infinity, or its gradient, would be NaN."""
        weights = {"vlm": self.lambda_vlm, "vvm": self.lambda_vvm}
        parts = [weights[half_of(name)] * value for name, value in values.items() if weights[half_of(name)] != 0]
        # The sum of no pixels: 0, and gradients of 0 for a host that asks for them.
        return sum(parts) if parts else fake[:0].sum().to(next(iter(values.values())).dtype)

    def _encode_all(
        self, fake: Tensor, text: Features | None, real: Tensor | None
    ) -> tuple[Features, dict[str, Features]]:
        """The generated images, with gradient, and each half's anchors, without: captions and real images."""
        anchors = {} if text is None else {"vlm": text}
        # Before the generated images, so that their activations do not lie beside those of these.
        if real is not None:
            with torch.no_grad():
                anchors["vvm"] = self._encode(real, checked=True)
        view = fake if self.augment is None else self._door.view(self.augment, fake)
        image = self._encode(view, checked=view is fake)
        check_anchors(anchors, image)
        return image, anchors

    def _gather_all(
        self, image: Features, anchors: dict[str, Features], ids: Tensor | None
    ) -> tuple[Rows, dict[str, Rows], Tensor | None]:
        """The same beside the rows of every rank, and `(B, W * B)` bool, True for rows that are no negatives."""
        images = self._gather(image, self.terms, class_ids=ids is not None)
        excluded = None
        # After the images, whose gathering makes sure that every rank has as many rows, and ids or none.
        if ids is not None and not all(name.endswith("_general") for name in self.terms):
            own = ids.to(image.pooled.device, non_blocking=True)
            every = distributed.gather(own, self.process_group)
            excluded = own[:, None] == every[None, :]
            # With one process those that the host gave, which seldom are on a GPU.
            ids = ids if every is own else every
        self._door.look_at_rows(self.terms, len(images.every.pooled), ids)
        gathered = {half: self._gather(anchor, terms_of(half, self.terms)) for half, anchor in anchors.items()}
        return images, gathered, excluded

    def _term(self, name: str, images: Rows, anchors: dict[str, Rows], excluded: Tensor | None) -> Tensor:
        """The term of that name, not weighted yet: local, global or general matching of images and anchors."""
        half, level = name.split("_")
        anchor = anchors[half]
        if level == "local":
            return self._posterior(self._local_scores, self.gamma3_local, images, anchor, excluded)
        if level == "global":
            return self._posterior(global_scores, self.gamma3, images, anchor, excluded)
        return general_loss(self.scorer(images.own, anchor.own, KINDS[half]))

    def _posterior(
        self,
        scores: Callable[[Features, Features], Tensor],
        temperature: float,
        images: Rows,
        anchors: Rows,
        excluded: Tensor | None,
    ) -> Tensor:
        """-log P(A_i | I_i) - log P(I_i | A_i), averaged over this rank's rows i, candidates j from every rank."""
        by_image = temperature * scores(images.own, anchors.every)
        # With one process the second matrix is the first one transposed.
        by_anchor = by_image.T if images.every is images.own else temperature * scores(images.every, anchors.own).T
        batch = len(images.own.pooled)
        first = batch * distributed.rank(self.process_group)
        positives = torch.arange(first, first + batch, device=by_image.device)
        return contrastive_loss(by_image, positives, excluded) + contrastive_loss(by_anchor, positives, excluded)

    def _local_scores(self, image: Features, anchor: Features) -> Tensor:
        return local_scores(image, anchor, self.gamma1, self.gamma2)

    def _encode(self, images: Tensor, *, checked: bool = False) -> Features:
        return self._door.encoded(self.image_encoder, images, checked=checked)

    def _gather(self, features: Features, terms: Sequence[str], **given: bool) -> Rows:
        """These rows beside those of every rank, as far as `terms` compare with other rows."""
        if all(name.endswith("_general") for name in terms):
            return Rows(features, features)
        local = any(name.endswith("_local") for name in terms)
        return Rows(features, distributed.gather_features(features, self.process_group, local=local, **given))

    def _freeze(self) -> None:
        # Again at every call: a host may have called requires_grad_() or train() on a module that it shares with us.
        for part in self.children():
            # Torch.compile cannot look into an LSTM, and what it traces needs none.
            if not (part is self.text_encoder and torch.compiler.is_compiling()):
                freeze(part, training=part is self.augment)

    def encode_text(self, captions: Sequence[str]) -> Features:
        """Anchors from strings, tokenised with the matcher's own vocabulary.

        Args:
            captions: B strings.

        Returns:
            Features without gradient, on the loss's device.

        Raises:
            ValueError: this loss wraps bare modules (no vocabulary), or a caption has no known word.
        """
        return self.encode_tokens(*self._door.tokenise(captions))

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
        self._door.check_text_encoder(self.text_encoder, vocabulary)
        self._freeze()
        weight = first_tensor(self.text_encoder, self.image_encoder)
        if isinstance(tokens, Tensor) and weight is not None:
            tokens = tokens.to(weight.device)
        with without_autocast(torch.device("cpu") if weight is None else weight.device):
            return check_features(self.text_encoder(tokens, lengths), "text_encoder").detach()
