"""Random views of generated images before the matcher sees them, so that a generator cannot fool it pixel by pixel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class RandomView:
    """Shift, mirror and add a little noise, each image by itself; differentiable. Source: ours.

    Args:
        shift: largest shift as a share of the image's side; what moves in is the mirrored border.
        flip: mirror half of the images. Switch it off where captions tell left from right.
        noise: standard deviation of the noise, for images in [-1, 1].
    """

    def __init__(self, shift: float = 0.08, flip: bool = True, noise: float = 0.03) -> None:
        if not 0 <= shift < 0.5:
            raise ValueError(f"shift: expected a share from 0 to below 0.5, got {shift}")
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise: expected a standard deviation from 0 up, got {noise}")
        self.shift, self.flip, self.noise = shift, flip, noise

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` images in, as many random views of the same size out."""
        batch, _, height, width = images.shape
        room_y, room_x = round(self.shift * height), round(self.shift * width)
        padded = F.pad(images, (room_x, room_x, room_y, room_y), mode="reflect")
        # All choices are drawn on the CPU: reading them from a GPU, or sending them there, would wait for it.
        tops = torch.randint(2 * room_y + 1, (batch,), device="cpu").tolist()
        lefts = torch.randint(2 * room_x + 1, (batch,), device="cpu").tolist()
        mirrored = [False] * batch
        if self.flip:
            mirrored = (torch.rand(batch, dtype=torch.float32, device="cpu") < 0.5).tolist()
        parts = [p[:, y : y + height, x : x + width] for p, y, x in zip(padded, tops, lefts, strict=True)]
        views = torch.stack([p.flip(2) if turned else p for p, turned in zip(parts, mirrored, strict=True)])
        return views + self.noise * torch.randn_like(views)
