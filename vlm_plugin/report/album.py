"""The pictures of a report: shown captions, the best and the worst, and where the matcher looks for each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_plugin.data.images import to_bytes
from vlm_plugin.files import write_file
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matching import region_attention

EXTREMES = 8


def extremes(scores: Tensor, count: int = EXTREMES) -> tuple[list[int], list[int]]:
    """Positions of the highest scores, best first, and of the lowest, worst first."""
    order = scores.argsort(descending=True, stable=True).tolist()
    count = min(count, len(order))
    return order[:count], order[::-1][:count]


def scored(captions: Sequence[str], pictures: Tensor, scores: Sequence[float]) -> dict[str, Any]:
    """One row of pictures with their scores, for the report."""
    return {"captions": list(captions), "pictures": to_bytes(pictures), "scores": [float(score) for score in scores]}


@torch.no_grad()
def word_maps(vlm: VLM, caption: str, real: Tensor, fake: Tensor) -> dict[str, Any]:
    """Where a matcher looks for each word of a caption, in the real and in the generated picture.

    Args:
        vlm: a matcher whose image encoder has a `grid`.
        caption: the caption.
        real: `(3, S, S)` in [-1, 1].
        fake: the same.
    """
    image = vlm.encode_image(torch.stack([real, fake]).to(vlm.device))
    maps = region_attention(image, vlm.encode_text([caption]))[:, 0].unflatten(-1, vlm.image_encoder.grid).cpu()
    # Each word's own range: what matters is where it looks, not how sharply.
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    maps = (maps - low) / (high - low).clamp(min=1e-8)
    return {
        "caption": caption, "words": vlm.words(caption), "real": to_bytes(real), "fake": to_bytes(fake),
        "real_maps": maps[0], "fake_maps": maps[1],
    }  # fmt: skip


def save_gallery(
    path: Path,
    captions: Sequence[str],
    pictures: Mapping[str, Tensor],
    best: Mapping[str, Any] | None,
    worst: Mapping[str, Any] | None,
    attention: Sequence[Mapping[str, Any]],
) -> None:
    """Write what the report shows.

    Args:
        path: the file, `report.pt`.
        captions: K captions.
        pictures: name -> `(K, n, 3, S, S)` in [-1, 1].
        best, worst: of `scored`; None where nothing scores pictures.
        attention: of `word_maps`.
    """
    content = {"captions": list(captions), "pictures": {name: to_bytes(p) for name, p in pictures.items()}}
    content |= {"best": best, "worst": worst, "attention": [dict(row) for row in attention]}
    write_file({k: v for k, v in content.items() if v is not None}, path)
