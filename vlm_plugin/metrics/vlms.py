"""VLMS: the matching score block's score of pictures with their captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_plugin.checks import first_tensor
from vlm_plugin.features import Features, check_features
from vlm_plugin.matcher.vlm import VLM, check_scorer, check_vlm
from vlm_plugin.metrics.base import PictureMetric


class VLMS(PictureMetric):
    """Mean score that a matcher's scorer gives to pictures and their captions.

    A score from the very matcher that trained the generator is circular: take another one.

    ```python
    vlms = VLMS(VLM.load("birds.vlm.pt"))
    for images, captions in batches:
        vlms.update(images, captions)
    mean, spread = vlms.compute()
    ```

    Source: the score is the paper's; its mean over the evaluated pairs is ours.

    Args:
        vlm: a matcher with a scorer.
        folds: parts that the spread is taken over.
        seed: of the parts.
        **kwargs: as every torchmetrics `Metric` takes.

    Raises:
        ValueError: the matcher has no scorer, or one that was trained on other encoders.
    """

    scores: list[Tensor] | Tensor

    def __init__(self, vlm: VLM, *, folds: int = 10, seed: int = 0, **kwargs) -> None:
        super().__init__(folds, seed, **kwargs)
        check_vlm(vlm)
        if vlm.scorer is None:
            raise ValueError(
                f"vlm: expected a matcher with a scorer, got {vlm.fingerprint}, which has none: "
                "train one (vlm-plugin pretrain)"
            )
        check_scorer(vlm)
        self.vlm = vlm
        self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, images: Tensor | Features, captions: Sequence[str] | Features) -> None:
        """Add pictures.

        Args:
            images: `(B, 3, H, W)` floating point in [-1, 1], on the matcher's device; or what it encoded them to.
            captions: B strings, row i the one that picture i was drawn from; or what the matcher encoded them to.

        Raises:
            ValueError, TypeError: a wrong shape, type, range or number; the message names the argument.
        """
        image, text = self._encoded(images, captions, self.vlm.encode_image, self.vlm.encode_text)
        weight = first_tensor(self.vlm.scorer)
        with self._evaluating(weight.device):
            scores = self.vlm.scorer(image.to(weight.device), text.to(weight.device), "caption").sigmoid()
        self.scores.append(scores.to(self.device, torch.float32))

    def update_features(self, image: Features, text: Features) -> None:
        """Add B pictures that this metric's matcher has encoded already, one encoding for several metrics.

        Args:
            image: `vlm.encode_image(images)`.
            text: `vlm.encode_text(captions)`.
        """
        self.update(check_features(image, "image"), check_features(text, "text"))

    def values(self) -> Tensor:
        """`(N,)` scores in (0, 1)."""
        return self._joined(self.scores)
