"""Attribute accuracy: the share of the attributes named by a caption that a judge finds in the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlm_plugin.checks import check_captions
from vlm_plugin.metrics.base import PictureMetric, module_of


class AttributeAccuracy(PictureMetric):
    """Share of the attributes that each caption names which a judge finds in its picture, averaged over pictures.

    Synthetic birds are judged with `AttributeAccuracy(Judge.load().find, said_by)`, where
    `from vlm_plugin.evaluation.judge import Judge` and `from vlm_plugin.data.birds import said_by`.

    Source: ours.

    Args:
        find: images `(B, 3, H, W)` in [-1, 1] -> `(B, A)` the value of each attribute. A module, or a method of one.
        said_by: B captions -> `(B, A)` the values that they name, and `(B, A)` bool, True where they name one.
        folds: parts that the spread is taken over.
        seed: of the parts.
        **kwargs: as every torchmetrics `Metric` takes.
    """

    shares: list[Tensor] | Tensor

    def __init__(
        self,
        find: Callable[[Tensor], Tensor],
        said_by: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
        *,
        folds: int = 10,
        seed: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(folds, seed, **kwargs)
        self._hold("find", find)
        self._hold("said_by", said_by)
        self.add_state("shares", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, captions: Sequence[str]) -> None:
        """Add pictures.

        Args:
            images: `(B, 3, H, W)` floating point in [-1, 1], on the judge's device.
            captions: B strings, row i the one that picture i was drawn from; each names at least one attribute.

        Raises:
            ValueError: a wrong shape, type, range or number; the message names the argument.
        """
        images = self._check_images(images, module_of(self.find))
        captions = check_captions(captions, len(images))
        with self._evaluating(images.device):
            found = self.find(images)
            values, named = (part.to(found.device) for part in self.said_by(captions))
        if not found.shape == values.shape == named.shape or found.dim() != 2 or named.dtype != torch.bool:
            raise ValueError(
                "find, said_by: expected values (B, A), and values (B, A) with bool (B, A), "
                f"got {tuple(found.shape)}, and {tuple(values.shape)} with {named.dtype} {tuple(named.shape)}"
            )
        count = named.sum(1)
        if not bool(count.all()):
            silent = int((count == 0).nonzero()[0])
            raise ValueError(f"captions[{silent}]: expected it to name an attribute, got {captions[silent]!r}")
        self.shares.append((((found == values) & named).sum(1) / count).to(self.device, torch.float32))

    def values(self) -> Tensor:
        """`(N,)` shares in [0, 1]."""
        return self._joined(self.shares)
