"""The matching score block: a transformer encoder that reads an image and an anchor together and scores the pair."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlm_plugin.checks import check_positive
from vlm_plugin.features import Features

KINDS = ("caption", "image")
_SETTING = threading.Lock()


def _gelu(x: Tensor) -> Tensor:
    # Named by the string "gelu", the layer takes another path when nothing asks for a gradient, which gives slightly
    # other values and, in older releases of torch, fails under autocast on a CPU.
    return F.gelu(x)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as plain products. The setting is the whole process's: of two threads that overlap, the later one would
    put back what the earlier one had set."""
    with _SETTING if not torch.compiler.is_compiling() else contextlib.nullcontext(), sdpa_kernel(SDPBackend.MATH):
        yield


class MatchingScoreBlock(nn.Module):
    """Score of an (image, anchor) pair, where the anchor is a caption or another image.

    The local and pooled vectors of both sides form one sequence. Each token gets a learned embedding of what it is
    (the image's or the anchor's, local or pooled, and the anchor's kind); a transformer encoder reads the sequence; a
    linear layer gives one number a token; their mean over the valid tokens is the logit.

    Source: the sequence, the transformer, the linear layer, the pooling and the sigmoid are the paper's. The sizes,
    pre-norm, GELU, type embeddings, a linear layer to one number a token and masked mean pooling are ours.

    Args:
        embed_dim: D of the features.
        layers: transformer layers.
        heads: attention heads; must divide `embed_dim`.

    Attributes:
        encoder_fingerprints: fingerprints of the encoders it was trained on, `{"image_encoder": ..., "text_encoder":
            ...}`, or None before `VLM.stamp` or `VLM.save` fills it in; `DualVLMLoss` compares.
    """

    def __init__(self, embed_dim: int = 256, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        check_positive(embed_dim=embed_dim, layers=layers, heads=heads)
        if embed_dim % heads:
            raise ValueError(f"heads: expected a divisor of embed_dim ({embed_dim}), got {heads}")
        self.settings = {"embed_dim": embed_dim, "layers": layers, "heads": heads}
        self.embed_dim = embed_dim
        self.encoder_fingerprints: dict[str, str] | None = None
        # Rows: the image's local and pooled tokens, then the anchor's local and pooled ones for each kind.
        self.token_types = nn.Embedding(2 + 2 * len(KINDS), embed_dim)
        nn.init.normal_(self.token_types.weight, std=0.02)
        self.input_norm = nn.LayerNorm(embed_dim)
        layer = nn.TransformerEncoderLayer(
            embed_dim, heads, 4 * embed_dim, dropout=0.0, activation=_gelu, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(embed_dim), enable_nested_tensor=False
        )
        self.to_score = nn.Linear(embed_dim, 1)

    def forward(self, image: Features, anchor: Features, kind: str) -> Tensor:
        """Score pairs row by row.

        Args:
            image: B images.
            anchor: B anchors; row i is scored with image i.
            kind: what the anchors are, "caption" or "image".

        Returns:
            `(B,)` logits in at least float32; the score in (0, 1) is their sigmoid.

        Raises:
            ValueError: an unknown `kind`, a feature width other than `embed_dim`, or batches of different sizes.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
        for name, features in (("image", image), ("anchor", anchor)):
            if features.local.shape[-1] != self.embed_dim:
                raise ValueError(f"{name}: expected features of width {self.embed_dim}, got {features.local.shape[-1]}")
        if len(image.pooled) != len(anchor.pooled):
            raise ValueError(f"anchor: expected {len(image.pooled)} as there are images, got {len(anchor.pooled)}")
        types = self.token_types.weight
        image, anchor = image.to(types.dtype), anchor.to(types.dtype)
        offset = 2 + 2 * KINDS.index(kind)
        tokens = torch.cat(
            [
                self.input_norm(image.local) + types[0],
                self.input_norm(image.pooled[:, None]) + types[1],
                self.input_norm(anchor.local) + types[offset],
                self.input_norm(anchor.pooled[:, None]) + types[offset + 1],
            ],
            dim=1,
        )
        always = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
        mask = torch.cat([image.mask, always, anchor.mask, always], dim=1)
        # On a CPU the backward of the fused attention is slower than plain products are at these lengths.
        with _plain_attention() if tokens.device.type == "cpu" else contextlib.nullcontext():
            scores = self.to_score(self.transformer(tokens, src_key_padding_mask=~mask)).squeeze(-1)
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        return scores.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
