"""How well a matcher does on held-out pictures, after each epoch of its training."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlm_plugin.data import BirdTruth, CaptionedImages, Record, collate
from vlm_plugin.data.birds.captions import read_caption, swap_caption
from vlm_plugin.data.dataset import Batch
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.pretraining.losses import LEVELS, rows_of
from vlm_plugin.pretraining.pairs import true_captions_of
from vlm_plugin.training.skipped import usable_indices

# Captions are sought among POOL; at most POOLS such pools are enough to choose an epoch by.
POOL, POOLS = 100, 20


class Evaluator:
    """How well a matcher finds and ranks captions of a held-out split.

    Captions are sought among 100 (all there are, if fewer). Of a split of more than 2,000 pictures, 20 such pools are
    used, evenly spaced over its shuffled order. Pictures are loaded when they are encoded, and never kept.

    Args:
        records: the split's pictures; the caption number i % captions of each is used.
        image_size: pixels.
        truth: the attributes of synthetic birds, or None.
        device: where to compute.
        seed: draws pools and swapped words.
        vocabulary: where given, captions without a word of it are passed over.
        skip_bad: leave out pictures that cannot be used.

    Attributes:
        pools: positions in the split of the pictures of each pool.
        skipped: files and keys of the pictures left out.

    Raises:
        BadSampleError: a picture cannot be used, and `skip_bad` is off.
        ValueError: no picture can be used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_size: int,
        truth: BirdTruth | None,
        device: torch.device,
        seed: int = 0,
        *,
        vocabulary: Vocabulary | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.images = CaptionedImages(records, image_size, train=False, vocabulary=vocabulary)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
        pools = [order[start : start + POOL] for start in range(0, len(order), POOL)]
        if len(pools) > 1 and len(pools[-1]) < POOL:
            pools.pop()
        count = min(len(pools), POOLS)
        chosen = [index for i in range(count) for index in pools[i * len(pools) // count]]
        # The rest of the split stands in for what cannot be used, and is not looked at otherwise.
        taken = set(chosen)
        rest = [index for index in order if index not in taken]
        usable, self.skipped = usable_indices(self.images, skip_bad, chosen + rest, enough=len(chosen))
        self.pools = [usable[start : start + POOL] for start in range(0, len(usable), POOL)]
        self.truth, self.device = truth, device
        self.random = random.Random(seed)
        self.swapped = [
            [swap_caption(c, list(said := read_caption(c)), said, self.random)[0] for c in batch.captions]
            for batch in (self.batches() if truth is not None else [])
        ]

    def batches(self) -> Iterator[Batch]:
        """The pools, each loaded as it is asked for."""
        for pool in self.pools:
            yield collate([self.images[index] for index in pool])

    def ceiling(self) -> float:
        """The R@1 of a matcher that knows the truth.

        Several captions of a pool can be true of one picture. The one that is true of the fewest others is the
        likeliest to be its own, so the matcher takes that one, and one at random where several tie. Source: ours.
        """
        hits = []
        for batch in self.batches():
            if self.truth is None:
                # Without attributes the only captions known to be equally right are the equal ones.
                true = torch.tensor([[a == b for b in batch.captions] for a in batch.captions], device="cpu")
            else:
                true = true_captions_of(self.truth, batch)
            pictures = true.sum(0).expand_as(true).masked_fill(~true, len(true) + 1)
            rarest = pictures == pictures.min(1, keepdim=True).values
            hits.append(rarest.diagonal() / rarest.sum(1))
        return float(torch.cat(hits).mean())

    @torch.no_grad()
    def __call__(self, vlm: VLM) -> dict[str, float]:
        """How well the matcher does on the split.

        Returns:
            `local_r1`, `global_r1`: how often a picture's own caption scores highest of its pool. With a scorer,
            `general_hard`: how often that one prefers the picture's own caption to the wrong one of the highest global
            score (what is true of the picture is not wrong); absent if there is no wrong caption. With attributes,
            `local_swapped`, `global_swapped`, and with a scorer `general_swapped`: how often a true caption beats its
            swapped twin.
        """
        vlm.eval()
        hits: dict[str, list[Tensor]] = defaultdict(list)
        for number, batch in enumerate(self.batches()):
            image = vlm.encode_image(batch.images.to(self.device))
            caption = vlm.encode_text(batch.captions)
            tables = {name: level.score(image, caption) for name, level in LEVELS.items()}
            own = torch.arange(len(batch.captions), device=self.device)
            for name, table in tables.items():
                hits[f"{name}_r1"].append((table.argmax(1) == own).float())
            scores = {name: table.diagonal() for name, table in tables.items()}
            if vlm.scorer is not None:
                scores["general"] = vlm.scorer(image, caption, "caption")
                true = true_captions_of(self.truth, batch).to(self.device)
                hardest = tables["global"].masked_fill(true, -torch.inf).argmax(1)
                better = scores["general"] > vlm.scorer(image, rows_of(caption, hardest), "caption")
                hits["general_hard"].append(better[~true.all(1)].float())
            if self.swapped:
                twin = vlm.encode_text(self.swapped[number])
                twins = {name: level.score(image, twin).diagonal() for name, level in LEVELS.items()}
                if vlm.scorer is not None:
                    twins["general"] = vlm.scorer(image, twin, "caption")
                for name, score in scores.items():
                    hits[f"{name}_swapped"].append((score > twins[name]).float())
        results = {name: torch.cat(parts) for name, parts in hits.items()}
        return {name: float(values.mean()) for name, values in results.items() if len(values)}


def scores_in_words(results: dict[str, float], ceiling: float, pool: int) -> str:
    """One line about an epoch.

    Args:
        results: what an `Evaluator` found.
        ceiling: its `ceiling()`.
        pool: among how many captions it sought.
    """
    first = f"local {results['local_r1']:.3f}, global {results['global_r1']:.3f}"
    parts = [f"R@1 of {pool} {first} (ceiling {ceiling:.3f})"]
    if "general_hard" in results:
        parts.append(f"true over hardest wrong: general {results['general_hard']:.3f}")
    swapped = {name: results.get(f"{name}_swapped") for name in ("local", "global", "general")}
    if told := [f"{name} {share:.3f}" for name, share in swapped.items() if share is not None]:
        parts.append(f"true over swapped: {', '.join(told)}")
    return "; ".join(parts)
