"""A drop-in loss that makes text-to-image GANs draw what the caption says (VLMGAN*, arXiv 2208.09596)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_plugin.features import Features, image_features, text_features
    from vlm_plugin.loss import TERMS, DualVLMLoss, LossOutput
    from vlm_plugin.matcher.image_encoders import ConvEncoder, InceptionEncoder
    from vlm_plugin.matcher.scorer import MatchingScoreBlock
    from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
    from vlm_plugin.matcher.vlm import VLM
    from vlm_plugin.matcher.vocabulary import Vocabulary

__version__ = "0.1.0"

__all__ = [
    "TERMS",
    "VLM",
    "ConvEncoder",
    "DualVLMLoss",
    "Features",
    "InceptionEncoder",
    "LSTMTextEncoder",
    "LossOutput",
    "MatchingScoreBlock",
    "Vocabulary",
    "image_features",
    "text_features",
]

# Where each public name lives. It is imported when it is asked for: `vlm-plugin patch` needs no torch.
_HOMES = {
    "TERMS": "loss",
    "VLM": "matcher.vlm",
    "ConvEncoder": "matcher.image_encoders",
    "DualVLMLoss": "loss",
    "Features": "features",
    "InceptionEncoder": "matcher.image_encoders",
    "LSTMTextEncoder": "matcher.text_encoder",
    "LossOutput": "loss",
    "MatchingScoreBlock": "matcher.scorer",
    "Vocabulary": "matcher.vocabulary",
    "image_features": "features",
    "text_features": "features",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
