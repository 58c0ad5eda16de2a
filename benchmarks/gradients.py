"""How hard each loss pulls at the picture: gradients at the packaged DF-GAN's pictures, before any further training.

python benchmarks/gradients.py [--batches 4]

Weights are compared by these, not by the losses' values. Adam divides gradients by their size, so what counts is the
ratio between losses, and a loss that outweighs the others several times gains little from more weight.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from easydict import EasyDict
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from baselines.dfgan.losses import generator_loss
from baselines.dfgan.trainer import DFGAN
from benchmarks.alternatives import DAMSMLoss, FeatureMatching
from benchmarks.markdown import markdown_table
from benchmarks.quality_plan import ARMS
from vlm_plugin import TERMS, DualVLMLoss
from vlm_plugin.augment import RandomView
from vlm_plugin.data import CaptionedImages, make_birds, open_split
from vlm_plugin.data.dataset import Collate
from vlm_plugin.tools import training
from vlm_plugin.tools.gan import BIRDS, BIRDS_FOLDER
from vlm_plugin.tools.matchers import PACKAGED, load_matcher

FOLDER = Path(__file__).resolve().parents[1] / "baselines" / "dfgan"


def size_of(gradient: Tensor) -> float:
    """Mean over the pictures of the length of a gradient `(B, 3, S, S)` of a loss that is a mean over them.

    Times B, so that it does not depend on the batch.
    """
    return float(gradient.flatten(1).norm(dim=1).mean() * len(gradient))


def gradients(batches: int) -> dict[str, float]:
    """Loss -> size of its gradient at the picture: unweighted, but for the arms of quality.py."""
    matcher = load_matcher(PACKAGED).requires_grad_(False)
    settings = EasyDict(yaml.safe_load((FOLDER / "cfg" / "synthetic.yml").read_text(encoding="utf-8")))
    torch.manual_seed(0)
    trainer = DFGAN(settings, matcher, torch.device("cpu"), torch.float32)
    trainer.load_start(FOLDER / "assets" / "birds.pt", matcher)
    images = CaptionedImages(
        open_split(make_birds(BIRDS_FOLDER, **BIRDS), "train"), trainer.image_size, train=True,
        vocabulary=matcher.vocabulary,
    )  # fmt: skip
    stream = training.endless_batches(
        images, settings.batch, 0, Collate(matcher.vocabulary, matcher.max_words), first_step=0,
        device=trainer.device, workers=0, skip_bad=False,
    )  # fmt: skip
    dual = DualVLMLoss(matcher, lambda_vvm=1.0, lambda_vlm=1.0, augment=RandomView())
    others = {"DAMSM": DAMSMLoss(matcher, settings), "feature matching": FeatureMatching(matcher, settings)}
    sizes: dict[str, list[float]] = {}
    for number in training.progress(range(batches), desc="batches"):
        batch = next(stream)
        text = matcher.encode_tokens(batch.tokens, batch.lengths)
        sentence = trainer.condition(text).pooled
        fake = trainer.generator(trainer.noise(len(sentence), number), sentence)
        discriminator, head = trainer.discriminators["discriminator"], trainer.discriminators["head"]
        found = {"adversarial": _gradient(generator_loss(head(discriminator(fake), sentence)), fake)}
        for term in TERMS:
            dual.terms = (term,)
            torch.manual_seed(number)  # one view of a picture for all losses
            found[term] = _gradient(dual(fake, text, batch.images, class_ids=batch.class_ids).total, fake)
        for name, loss in others.items():
            loss.lambda_vvm = loss.lambda_vlm = 1.0
            torch.manual_seed(number)
            found[name] = _gradient(loss(fake, text, batch.images, class_ids=batch.class_ids).total, fake)
        for name, gradient in (found | _weighted(found)).items():
            sizes.setdefault(name, []).append(size_of(gradient))
    return {name: statistics.fmean(values) for name, values in sizes.items()}


def _gradient(loss: Tensor, fake: Tensor) -> Tensor:
    return torch.autograd.grad(loss, fake, retain_graph=True)[0]


def _weighted(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the arms of quality.py, at their weights."""
    arms = {}
    for name in ("both", "vlm", "vvm", "vlm_local alone", "global contrastive"):
        arm = ARMS[name]
        weights = {"vlm": arm.lambda_vlm, "vvm": arm.lambda_vvm}
        arms[f"arm {name}"] = torch.stack([weights[term[:3]] * found[term] for term in arm.terms]).sum(0)
    arms["arm DAMSM"] = ARMS["DAMSM"].lambda_vlm * found["DAMSM"]
    arms["arm feature matching"] = ARMS["feature matching"].lambda_vvm * found["feature matching"]
    return arms


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4)
    sizes = gradients(parser.parse_args(argv).batches)
    own = sizes["adversarial"]
    rows = [[name, f"{size:.2f}", f"{size / own:.1f}"] for name, size in sizes.items()]
    print(markdown_table(["loss", "gradient at the picture", "of the adversarial"], rows))


if __name__ == "__main__":
    main()
