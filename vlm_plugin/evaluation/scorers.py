"""Who scores pictures: matchers, the judge of the synthetic birds, and Inception."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from vlm_plugin.data import BirdTruth
from vlm_plugin.evaluation.distances import Inception
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.files import ASSETS
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.matcher.vlm import VLM

# The synthetic birds' second matcher: another backbone, another seed, other pictures than the one that trains.
EVALUATOR = ASSETS / "birds.evaluator.vlm.pt"


class Named(NamedTuple):
    """A matcher and what to call it."""

    name: str
    vlm: VLM


class Scorers(NamedTuple):
    """Everything that scores pictures of one evaluation, on one device."""

    evaluator: Named
    """The matcher that scores."""
    matcher: Named | None = None
    """The matcher of the training, which scores beside the evaluator where it is another one; None if unknown."""
    trained_with: Collection[str] = ()
    """`marks` of the matchers that trained the generator: their own scores are circular."""
    judge: Judge | None = None
    """The birds' attribute classifier; None for other data."""
    inception: Inception | None = None
    """Inception with its weights; None where there are none."""

    def readers(self) -> dict[str, Named]:
        """The matchers that score, by what is added to the names of their columns: nothing to the evaluator's."""
        own = self.matcher
        if own is None or own.vlm.fingerprint == self.evaluator.vlm.fingerprint:
            return {"": self.evaluator}
        return {"": self.evaluator, "_training": own}


def choose_evaluator(name: str | Path | None, truth: BirdTruth | None, matcher: Named | None) -> Named:
    """The matcher that scores: the named one, else for synthetic birds the packaged one that trains no generator, else
    the training's own.

    Raises:
        ValueError: there is none.
        FileNotFoundError: no file of that name.
    """
    if name is None and truth is not None:
        name = EVALUATOR
    if name is not None:
        return Named(Path(name).name, load_matcher(str(name)))
    if matcher is None:
        raise ValueError("--evaluator: expected a matcher's file: nothing says which one belongs to this generator")
    return matcher


def choose_judge(truth: BirdTruth | None, device: torch.device) -> Judge | None:
    """The packaged judge where the attributes of the pictures are known, as those of synthetic birds are."""
    return None if truth is None else Judge.load().to(device)
