"""What benchmarks/quality/run.py compares: protocols, arms, and runs of an arm under a protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from vlm_plugin import TERMS
from vlm_plugin.data.birds.make import BIRDS

# A baseline's folder -> its name.
NAMES = {"dfgan": "DF-GAN", "attngan": "AttnGAN"}
# The rates until the tuning protocol chose twice of both for DF-GAN; the weights were those of the arms. A protocol
# keeps its rates, so that its runs stay comparable.
EARLIER = {"dfgan": {"generator_lr": 2e-4, "discriminator_lr": 4e-4}, "attngan": {}}
# Of cfg/bird.yml what decides the size of networks and batches.
_LARGE = {
    "dfgan": {"image_size": 256, "nf": 32, "batch": 24},
    "attngan": {"base_size": 64, "gf_dim": 32, "df_dim": 64, "batch": 20},
}
# EARLIER's rates for DF-GAN, twice.
_TWICE = {name: 2 * rate for name, rate in EARLIER["dfgan"].items()}
_TEXT = tuple(term for term in TERMS if term.startswith("vlm_"))
_VISUAL = tuple(term for term in TERMS if term.startswith("vvm_"))
# Of the arms' weights, what each baseline's cfg/synthetic.yml ships with; chosen with the tuning protocol.
SHIPPED = {"dfgan": 2.0, "attngan": 4.0}


class Protocol(NamedTuple):
    """What all runs of a comparison share."""

    what: str
    legs: tuple[int, ...]
    """Steps at which every arm is evaluated."""
    birds: dict[str, int] | None = None
    """The birds to draw; None for the emoji of emoji.py, with a matcher and an evaluator of their own."""
    from_start: bool = False
    """Begins from the packaged generator, which has converged without the loss."""
    equal_time: Mapping[int, int] = MappingProxyType({})
    """Leg -> steps at which plain arms are evaluated too, and which take them about the time of both halves' leg."""
    split: str = "test"
    """Whose captions are drawn and scored."""
    shipped: bool = False
    """With the shipped rates and weights; else with those of before the tuning protocol chose, see `EARLIER`."""
    changes: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    """To the settings of all its runs: baseline -> name -> value."""

    @property
    def headline(self) -> str:
        """The measure of which differences are tested: by the independent judge, else by the independent matcher."""
        return "r_precision" if self.birds is None else "attribute_accuracy"


PROTOCOLS = {
    "tuning": Protocol(
        "from the packaged start, scored on the validation split", legs=(400,), from_start=True,
        birds={"train": 2000, "validation": 800, "test": 10, "size": 64, "seed": 0}, split="validation",
    ),
    "continued": Protocol(
        "from the packaged start, where plain training has converged; the main job's birds",
        legs=(400, 800, 1400, 2600), equal_time={800: 1400, 1400: 2600}, from_start=True, birds=BIRDS, shipped=True,
    ),
    "slower": Protocol(
        "the same at half of DF-GAN's shipped rates and weights", legs=(400, 800),
        equal_time={800: 1400}, from_start=True, birds=BIRDS,
    ),
    "whole": Protocol(
        "the same on all 10,000 birds that the packaged start was trained on, not the main job's 2,000 of them",
        legs=(400, 800, 1400), equal_time={800: 1400}, from_start=True, birds=BIRDS | {"train": 10_000}, shipped=True,
    ),
    "scratch": Protocol(
        "from random weights; 4,000 birds", legs=(500, 1500), equal_time={1500: 2800},
        birds={"train": 4000, "validation": 500, "test": 1000, "size": 64, "seed": 300},
    ),
    "ablation": Protocol(
        "both halves without each of their terms, from the packaged start, on all its 10,000 birds; on a GPU",
        legs=(800,), from_start=True, birds=BIRDS | {"train": 10_000}, shipped=True,
    ),
    "large": Protocol(
        "from random weights at 256 pixels; 1,500 birds; on a GPU", legs=(500, 1500),
        birds={"train": 1500, "validation": 10, "test": 500, "size": 256, "seed": 300}, changes=_LARGE,
    ),
    "emoji": Protocol(
        "from random weights; emoji of several designers, captioned by their names", legs=(1000,),
        equal_time={1000: 1800},
    ),
}  # fmt: skip


class Arm(NamedTuple):
    """What is added to the GAN's own loss. Without terms nothing is (AttnGAN then has its DAMSM)."""

    terms: tuple[str, ...] = ()
    """Of the dual loss."""
    alternative: str | None = None
    """A loss of alternatives.py in the shipped one's place."""
    lambda_vvm: float = 0.1
    lambda_vlm: float = 0.4
    changes: Mapping[str, float | Mapping[str, float]] = MappingProxyType({})
    """To the settings of the run; a section's entries in a mapping of their own."""
    start: int = 0
    """Step at which the dual loss sets in."""
    is_recipe: bool = False
    """Not one of the grid: tried where it matters."""

    @property
    def is_plain(self) -> bool:
        """Nothing is added."""
        return not self.terms and self.alternative is None


# The weights of the alternatives give them about the gradient at the picture that both halves have at the packaged
# start (arms.py). `--factors` multiplies each arm's weights.
ARMS: dict[str, Arm] = {
    "plain": Arm(),
    "both": Arm(TERMS),
    "vlm": Arm(_TEXT),
    "vvm": Arm(_VISUAL),
    **{f"both minus {term}": Arm(tuple(other for other in TERMS if other != term)) for term in TERMS},
    "vlm_local alone": Arm(("vlm_local",), lambda_vlm=0.6),
    "both, rougher views": Arm(TERMS, alternative="rougher-views", is_recipe=True),
    "both, sharper": Arm(TERMS, alternative="sharper", is_recipe=True),
    "both, every word": Arm(TERMS, alternative="every-word", is_recipe=True),
    "both, swapped words": Arm(TERMS, alternative="swapped-words", is_recipe=True),
    "both, closer attention, rates x 2": Arm(TERMS, alternative="closer-attention", changes=_TWICE, is_recipe=True),
    "both, whole caption, rates x 2": Arm(TERMS, alternative="whole-caption", changes=_TWICE, is_recipe=True),
    "both, moved words, rates x 2": Arm(TERMS, alternative="moved-words", changes=_TWICE, is_recipe=True),
    "both, visual half x 4, rates x 2": Arm(TERMS, lambda_vvm=0.4, changes=_TWICE, is_recipe=True),
    "both, floored": Arm(TERMS, alternative="floored", is_recipe=True),
    "both, generator rate x 2": Arm(TERMS, changes={"generator_lr": 4e-4}, is_recipe=True),
    "both, rates x 2": Arm(TERMS, changes=_TWICE, is_recipe=True),
    "both, rates x 2, discriminator's x 4": Arm(
        TERMS, changes={"generator_lr": 4e-4, "discriminator_lr": 1.6e-3}, is_recipe=True
    ),
    "both, floored, rates x 2": Arm(TERMS, alternative="floored", changes=_TWICE, is_recipe=True),
    "both, from step 1000": Arm(TERMS, start=1000, is_recipe=True),
    "global contrastive, rates x 2": Arm(("vlm_global",), lambda_vlm=1.6, changes=_TWICE, is_recipe=True),
    "plain, DAMSM x 4": Arm(changes={"damsm": {"weight": 0.2}}, is_recipe=True),
    "plain, DAMSM x 16": Arm(changes={"damsm": {"weight": 0.8}}, is_recipe=True),
    "plain, DAMSM x 32": Arm(changes={"damsm": {"weight": 1.6}}, is_recipe=True),
    "plain, generator rate x 2": Arm(changes={"generator_lr": 4e-4}, is_recipe=True),
    "plain, rates x 2": Arm(changes=_TWICE, is_recipe=True),
    "plain, float32": Arm(changes={"precision": "float32"}, is_recipe=True),
    "both, float32": Arm(TERMS, changes={"precision": "float32"}, is_recipe=True),
    "the judge's own loss*": Arm(alternative="judge", lambda_vlm=1.1, is_recipe=True),
    "global contrastive": Arm(("vlm_global",), lambda_vlm=1.6),
    "DAMSM": Arm(alternative="damsm", lambda_vlm=0.4),
    "feature matching": Arm(alternative="feature-matching", lambda_vvm=0.1),
}


def plain_of(arm: str) -> str | None:
    """The arm of plain training at an arm's learning rates and precision; None where there is none."""

    def rates(changes: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in changes.items() if name.endswith("_lr") or name == "precision"}

    same = [n for n, a in ARMS.items() if a.is_plain and a.changes == rates(ARMS[arm].changes)]
    return same[0] if same else None


def label(arm: str, factor: float) -> str:
    """An arm's name in tables."""
    return arm if factor == 1 else f"{arm}, weights x {factor:g}"


class Run(NamedTuple):
    """One training run."""

    protocol: str
    baseline: str
    arm: str
    seed: int
    factor: float = 1.0
    """On the arm's weights."""

    @property
    def name(self) -> str:
        """Name of its files."""
        weights = "" if self.factor == 1 else f"-x{self.factor:g}"
        arm = re.sub(r"[^\w ]", "", self.arm).replace(" ", "-")
        return f"{self.protocol}-{self.baseline}-{arm}{weights}-{self.seed}"

    @property
    def weights(self) -> dict[str, float]:
        """Settings of the dual loss."""
        arm = ARMS[self.arm]
        return {"lambda_vvm": arm.lambda_vvm * self.factor, "lambda_vlm": arm.lambda_vlm * self.factor}

    @property
    def legs(self) -> tuple[int, ...]:
        """Steps at which it is evaluated."""
        protocol = PROTOCOLS[self.protocol]
        longer = protocol.equal_time.values() if ARMS[self.arm].is_plain else ()
        return tuple(sorted({*protocol.legs, *longer}))
