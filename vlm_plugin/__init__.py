"""A drop-in loss that makes text-to-image GANs draw what the caption says (VLMGAN*, arXiv 2208.09596)."""

from .encoders import ConvEncoder, InceptionEncoder, LSTMTextEncoder
from .features import Features, image_features, text_features
from .loss import TERMS, DualVLMLoss, LossOutput
from .model import VLM
from .scorer import MatchingScoreBlock
from .vocabulary import Vocabulary

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
