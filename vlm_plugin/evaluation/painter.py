"""Pictures of captions for evaluation: the same ones whatever the batch size, and equal to what a PNG holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vlm_plugin.data.images import as_written
from vlm_plugin.features import Features
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.training.stream import mix


class Painter:
    """Draws pictures of captions.

    The noise of picture i depends on the seed and i alone. Pictures are rounded to 256 levels a channel: numbers about
    them can be computed again from the written files.

    Args:
        draw: noise `(B, noise_dim)` and the captions' Features -> `(B, 3, S, S)` in [-1, 1].
        matcher: encodes the captions.
        noise_dim: width of the noise.
        seed: decides the noise.
        truncation: noise is drawn from a normal distribution cut off at plus and minus this; None leaves it whole.

    Raises:
        ValueError: a truncation that is not positive and finite.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, Features], Tensor],
        matcher: VLM,
        noise_dim: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
    ) -> None:
        if truncation is not None and not 0 < truncation < math.inf:
            raise ValueError(f"truncation: expected a positive, finite number, got {truncation}")
        self._draw, self._matcher, self._noise_dim = draw, matcher, noise_dim
        self.seed, self.truncation = seed, truncation

    @torch.no_grad()
    def size(self) -> int:
        """Side S of the pictures; one is drawn to find out."""
        noise = self._noise(0)[None].to(self._matcher.device)
        word = torch.ones(1, 1, dtype=torch.int64, device="cpu")
        return self._draw(noise, self._matcher.encode_tokens(word, word[0])).shape[-1]

    def all(self, captions: Sequence[str], batch: int = 50) -> Iterator[Tensor]:
        """Batches `(B, 3, S, S)` in [-1, 1] on the CPU, picture i drawn from caption i."""
        for start in range(0, len(captions), batch):
            part = captions[start : start + batch]
            yield self.some(part, range(start, start + len(part)))

    @torch.no_grad()
    def some(self, captions: Sequence[str], numbers: Sequence[int]) -> Tensor:
        """`(B, 3, S, S)`: the pictures of these numbers, as `all` draws them.

        Args:
            captions: B captions, those of the pictures asked for.
            numbers: B numbers; another number is another noise.
        """
        noise = torch.stack([self._noise(number) for number in numbers]).to(self._matcher.device)
        pictures = self._draw(noise, self._matcher.encode_text(list(captions)))
        return as_written(pictures.float().cpu())

    def _noise(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix(self.seed, number, 1))
        noise = torch.empty(self._noise_dim, device="cpu")
        if self.truncation is None:
            return noise.normal_(generator=generator)
        return nn.init.trunc_normal_(noise, 0.0, 1.0, -self.truncation, self.truncation, generator=generator)
