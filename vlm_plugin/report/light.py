"""A picture darkened where a matcher does not look."""

from __future__ import annotations

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

# How much light is left where the weight is least.
_LEAST_LIGHT = 0.2


def lit(image: Image.Image, weights: Tensor, side: int, outlined: bool = True) -> Image.Image:
    """A picture darkened where weights are low, with an outline around the high ones.

    Hues stay, so that no colour has to be told from another; the outline serves pictures that are dark by themselves.

    Args:
        image: RGB.
        weights: `(h, w)`; the largest leaves the picture as it is, the least leaves a fifth of its light. Equal weights
            darken nothing.
        side: of the result, in pixels.
        outlined: draw the outline, halfway between the least and the largest weight.

    Returns:
        RGB, `side` by `side`.
    """
    weights = weights.detach().float().cpu().nan_to_num()
    span = weights.max() - weights.min()
    share = (weights - weights.min()) / span if span > 0 else torch.ones_like(weights)
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.fromarray((share * 255).round().to(torch.uint8).numpy())
    mask = mask.resize((side, side), Image.Resampling.BICUBIC)
    result = Image.composite(image, Image.eval(image, lambda value: round(value * _LEAST_LIGHT)), mask)
    high = mask.point(lambda value: 255 if value > 127 else 0)
    if not outlined:
        return result
    # Black beside white: seen on light pictures and on dark ones. Twice by one pixel: in less time than once by two.
    near = high.filter(ImageFilter.MaxFilter(3))
    for grown, colour in ((near.filter(ImageFilter.MaxFilter(3)), "black"), (near, "white")):
        result.paste(colour, mask=ImageChops.subtract(grown, high))
    return result
