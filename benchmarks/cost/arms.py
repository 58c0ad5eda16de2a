"""How hard each loss pulls at the picture before any further training of the packaged DF-GAN, and what a step costs.

python benchmarks/cost/arms.py [--batches 4]

Weights are compared by the gradients at the picture, not by the losses' values. Adam divides gradients by their size,
so what counts is the ratio between losses, and a loss that outweighs the others several times gains little from more
weight. Costs are processor time of one thread, as ratios to a plain step: medians over as many rounds as batches, in
each of which every arm has its turn. The numbers are kept in benchmarks/results/arms.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from easydict import EasyDict
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.markdown import markdown_table
from benchmarks.quality.alternatives import DAMSMLoss, FeatureMatching
from benchmarks.quality.plan import ARMS
from vlm_plugin import TERMS, DualVLMLoss
from vlm_plugin.augment import RandomView
from vlm_plugin.baselines.dfgan.losses import generator_loss
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.data import CaptionedImages, make_birds, open_split
from vlm_plugin.data.birds.make import BIRDS, BIRDS_FOLDER
from vlm_plugin.data.dataset import Collate
from vlm_plugin.files import write_json
from vlm_plugin.matcher.choose import PACKAGED, load_matcher
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import versions
from vlm_plugin.training.stream import Stream, endless_batches

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "baselines" / "dfgan"
RESULTS = ROOT / "benchmarks" / "results" / "arms.json"


def size_of(gradient: Tensor) -> float:
    """Mean over the pictures of the length of a gradient `(B, 3, S, S)` of a loss that is a mean over them.

    Times B, so that it does not depend on the batch.
    """
    return float(gradient.flatten(1).norm(dim=1).mean() * len(gradient))


class Bench:
    """The packaged DF-GAN, batches of birds, and every loss of quality/run.py.

    Args:
        batches: how many.
    """

    def __init__(self, batches: int) -> None:
        self.matcher = matcher = load_matcher(PACKAGED).requires_grad_(False)
        settings = EasyDict(yaml.safe_load((FOLDER / "cfg" / "synthetic.yml").read_text(encoding="utf-8")))
        torch.manual_seed(0)
        self.trainer = DFGAN(settings, matcher, torch.device("cpu"), torch.float32)
        self.trainer.load_start(FOLDER / "assets" / "birds.pt", matcher)
        images = CaptionedImages(
            open_split(make_birds(BIRDS_FOLDER, **BIRDS), "train"), self.trainer.image_size, train=True,
            vocabulary=matcher.vocabulary,
        )  # fmt: skip
        found = endless_batches(
            Stream(images, 0), settings.batch, Collate(matcher.vocabulary, matcher.max_words),
            device=self.trainer.device, workers=0,
        )  # fmt: skip
        self.batches = list(itertools.islice(found, batches))
        self.texts = [matcher.encode_tokens(batch.tokens, batch.lengths) for batch in self.batches]
        self.losses = {"DAMSM": DAMSMLoss(matcher, settings), "feature matching": FeatureMatching(matcher, settings)}

    def loss(self, terms: tuple[str, ...]) -> DualVLMLoss:
        """The dual loss with these terms."""
        return DualVLMLoss(self.matcher, lambda_vvm=1.0, lambda_vlm=1.0, augment=RandomView(), terms=terms)

    def gradients(self) -> dict[str, float]:
        """Loss -> size of its gradient at the picture: unweighted, but for the arms of quality/run.py."""
        losses = {term: self.loss((term,)) for term in TERMS} | self.losses
        trainer, sizes = self.trainer, {}
        discriminator, head = trainer.discriminators["discriminator"], trainer.discriminators["head"]
        for number, (batch, text) in enumerate(zip(self.batches, self.texts, strict=True)):
            sentence = trainer.condition(text).pooled
            fake = trainer.generator(trainer.noise(len(sentence), number), sentence)
            found = {"adversarial": _gradient(generator_loss(head(discriminator(fake), sentence)), fake)}
            for name, loss in losses.items():
                loss.lambda_vvm = loss.lambda_vlm = 1.0
                torch.manual_seed(number)  # one view of a picture for all losses
                found[name] = _gradient(loss(fake, text, batch.images, class_ids=batch.class_ids).total, fake)
            for name, gradient in (found | _weighted(found)).items():
                sizes.setdefault(name, []).append(size_of(gradient))
        return {name: statistics.fmean(values) for name, values in sizes.items()}

    def costs(self) -> dict[str, float]:
        """Arm -> processor time of a step over that of a plain one."""
        seconds: dict[str, list[float]] = {}
        arms = {name: arm for name, arm in ARMS.items() if not arm.is_recipe}
        losses = {
            name: self.losses.get(name) or (self.loss(arm.terms) if arm.terms else None) for name, arm in arms.items()
        }
        steps = [(number, name) for number in range(len(self.batches)) for name in arms]
        self.trainer.step(self.batches[0], self.texts[0], 0, losses["both"])  # the first step of all takes longer
        for number, name in progress(steps, desc="steps"):
            if (loss := losses[name]) is not None:
                loss.lambda_vvm, loss.lambda_vlm = arms[name].lambda_vvm, arms[name].lambda_vlm
            begun = time.process_time()
            self.trainer.step(self.batches[number], self.texts[number], number, loss)
            seconds.setdefault(name, []).append(time.process_time() - begun)
        plain = statistics.median(seconds["plain"])
        return {name: statistics.median(values) / plain for name, values in seconds.items()}


def _gradient(loss: Tensor, fake: Tensor) -> Tensor:
    return torch.autograd.grad(loss, fake, retain_graph=True)[0]


def _weighted(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the arms of quality/run.py, at their weights."""
    arms = {}
    for name in ("both", "vlm", "vvm", "vlm_local alone", "global contrastive"):
        arm = ARMS[name]
        weights = {"vlm": arm.lambda_vlm, "vvm": arm.lambda_vvm}
        arms[f"arm {name}"] = torch.stack([weights[term[:3]] * found[term] for term in arm.terms]).sum(0)
    arms["arm DAMSM"] = ARMS["DAMSM"].lambda_vlm * found["DAMSM"]
    arms["arm feature matching"] = ARMS["feature matching"].lambda_vvm * found["feature matching"]
    return arms


def table(content: Mapping[str, Mapping[str, float]]) -> str:
    """Both results as one Markdown table: first the losses at weight 1, then the arms."""
    pulls, costs = content["gradients"], content["costs"]
    rows = []
    for name in (*pulls, *(f"arm {arm}" for arm in costs if f"arm {arm}" not in pulls)):
        size = [f"{pulls[name]:.2f}", f"{pulls[name] / pulls['adversarial']:.1f}"] if name in pulls else ["", ""]
        cost = costs.get(name.removeprefix("arm "), None) if name.startswith("arm ") else None
        rows.append([name, *size, "" if cost is None else f"{cost:.2f}"])
    head = ["loss", "gradient at the picture", "of the adversarial loss'", "processor time of a step, of plain's"]
    return markdown_table(head, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON to write")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    bench = Bench(arguments.batches)
    content = {"batches": arguments.batches, "versions": versions()}
    content |= {"gradients": bench.gradients(), "costs": bench.costs()}
    write_json(content, arguments.results)
    print(table(content))


if __name__ == "__main__":
    main()
