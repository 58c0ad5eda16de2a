"""What one would take instead of the dual loss: the same run of DF-GAN, with another loss behind `--vlm`.

python benchmarks/quality/alternatives.py damsm --vlm ...           everything that baselines/dfgan/main.py takes
python benchmarks/quality/alternatives.py feature-matching --vlm ...
python benchmarks/quality/alternatives.py rougher-views --vlm ...   and other variants of the dual loss, see variants.py
python benchmarks/quality/alternatives.py judge --vlm ...           the judge itself: no alternative, a bound

The first two see the very matcher and the very random views that the dual loss sees. The weight of `damsm` is the
settings' `lambda_vlm`, that of `feature-matching`, which reads no caption, `lambda_vvm`. A contrastive loss
of pooled vectors alone as CLIP's, needs no line here: it is the dual loss with `terms: [vlm_global]`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.quality.variants import (
    EveryWord,
    Floored,
    MovedWords,
    SwappedWords,
    WholeCaption,
    closer_attention,
    listen,
    rougher_views,
    sharper,
)
from vlm_plugin import VLM, Features
from vlm_plugin.augment import RandomView
from vlm_plugin.baselines.attngan.losses import damsm_loss
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.gans.run import run
from vlm_plugin.loss import LossOutput

ROOT = Path(__file__).resolve().parents[2]


class Alternative(nn.Module):
    """Called as the dual loss is. The matcher is held aside, so that this module has no parameters of its own.

    Args:
        matcher: a frozen VLM.
        settings: a run's settings, of which `vlm.augment` is read.
    """

    def __init__(self, matcher: VLM, settings: EasyDict) -> None:
        super().__init__()
        self._matcher = (matcher,)
        self._augment = RandomView() if settings.vlm.augment else nn.Identity()
        self.lambda_vvm = self.lambda_vlm = 0.0

    def encode(self, images: Tensor, augment: bool = False) -> Features:
        """Features of images in [-1, 1], of a random view of each with `augment`."""
        return self._matcher[0].encode_image(self._augment(images) if augment else images)


class DAMSMLoss(Alternative):
    """AttnGAN's word and sentence losses, in the formula of its published code, on the dual loss' encoders."""

    def forward(self, fake: Tensor, text: Features, real: Tensor, *, class_ids: Tensor | None = None) -> LossOutput:
        """See `DualVLMLoss.forward`; `real` is not read."""
        ids = None if class_ids is None else class_ids.to(fake.device)
        terms = damsm_loss(self.encode(fake, augment=True), text, ids)
        return LossOutput(self.lambda_vlm * sum(terms), {k: v.detach() for k, v in terms._asdict().items()})


class FeatureMatching(Alternative):
    """Mean squared distance of a generated picture's features from those of the real picture of the same caption.

    `|x_fake - x_real|^2` at the regions, each at its place, plus the same of the pooled vectors, summed over the width
    and averaged over regions and pictures. Source: ours, after the perceptual losses between paired real and generated
    pictures that text-to-image GANs have used (ControlGAN, section 3.4), on the matcher's features in place of VGG's.
    """

    def forward(self, fake: Tensor, text: Features, real: Tensor, *, class_ids: Tensor | None = None) -> LossOutput:
        """See `DualVLMLoss.forward`; neither `text` nor `class_ids` is read."""
        image, anchor = self.encode(fake, augment=True), self.encode(real)
        terms = {
            "features_local": (image.local - anchor.local.detach()).square().sum(-1).mean(),
            "features_pooled": (image.pooled - anchor.pooled.detach()).square().sum(-1).mean(),
        }
        return LossOutput(self.lambda_vvm * sum(terms.values()), {k: v.detach() for k, v in terms.items()})


class JudgesOwn(Alternative):
    """The judge's own cross-entropy on the attributes that the captions name, averaged over those of each caption.

    No loss to train with: the measure trains the generator, so what it brings is circular by design. That makes it a
    bound on what a matcher could bring in so many steps that saw as the judge sees. Birds alone; its weight is
    `lambda_vlm`.
    """

    def __init__(self, matcher: VLM, settings: EasyDict) -> None:
        super().__init__(matcher, settings)
        self._judge = (Judge.load(),)
        self.captions: list[str] = []
        listen(matcher, lambda captions: setattr(self, "captions", captions))

    def forward(self, fake: Tensor, text: Features, real: Tensor, *, class_ids: Tensor | None = None) -> LossOutput:
        """See `DualVLMLoss.forward`; the captions are those that were encoded last, and `fake` alone is read."""
        values, named = (part.to(fake.device) for part in said_by(self.captions))
        logits = self._judge[0](self._augment(fake)).values()
        rows = torch.stack([F.cross_entropy(x, v, reduction="none") for x, v in zip(logits, values.T, strict=True)], 1)
        loss = ((rows * named).sum(1) / named.sum(1)).mean()
        return LossOutput(self.lambda_vlm * loss, {"judge": loss.detach()})


LOSSES: dict[str, Callable[[VLM, EasyDict], nn.Module]] = {
    "damsm": DAMSMLoss,
    "feature-matching": FeatureMatching,
    "rougher-views": rougher_views,
    "sharper": sharper,
    "closer-attention": closer_attention,
    "whole-caption": WholeCaption.build,
    "every-word": EveryWord.build,
    "swapped-words": SwappedWords.build,
    "moved-words": MovedWords.build,
    "floored": Floored.build,
    "judge": JudgesOwn,
}


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(print(f"{__doc__}\nLosses: {', '.join(LOSSES)}"))
    if len(sys.argv) < 2 or sys.argv[1] not in LOSSES:
        sys.exit(f"alternatives.py: expected one of {', '.join(LOSSES)} first, got {sys.argv[1:2] or 'nothing'}")
    run("dfgan", ROOT / "baselines" / "dfgan", DFGAN, sys.argv[2:], loss=LOSSES[sys.argv[1]])
