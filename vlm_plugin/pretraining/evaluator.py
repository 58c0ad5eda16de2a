"""How well a matcher does on held-out pictures."""

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
from vlm_plugin.matching import GAMMA1, GAMMA2, global_scores, local_scores
from vlm_plugin.pretraining.losses import rows_of
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
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
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
                true = torch.tensor([[a == b for b in batch.captions] for a in batch.captions])
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
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for number, batch in enumerate(self.batches()):
            image = vlm.encode_image(batch.images.to(self.device))
            own = torch.arange(len(batch.captions), device=self.device)
            caption = vlm.encode_text(batch.captions)
            scores = {
                "local": local_scores(image, caption, GAMMA1, GAMMA2),
                "global": global_scores(image, caption),
            }
            for name, table in scores.items():
                rows[f"{name}_r1"].append((table.argmax(1) == own).float())
            if vlm.scorer is not None:
                general = vlm.scorer(image, caption, "caption")
                true = true_captions_of(self.truth, batch).to(self.device)
                hardest = scores["global"].masked_fill(true, -torch.inf).argmax(1)
                better = general > vlm.scorer(image, rows_of(caption, hardest), "caption")
                rows["general_hard"].append(better[~true.all(1)].float())
            if self.swapped:
                twin = vlm.encode_text(self.swapped[number])
                better = {
                    "local": scores["local"].diagonal() > local_scores(image, twin, GAMMA1, GAMMA2).diagonal(),
                    "global": scores["global"].diagonal() > global_scores(image, twin).diagonal(),
                }
                if vlm.scorer is not None:
                    better["general"] = general > vlm.scorer(image, twin, "caption")
                for name, table in better.items():
                    rows[f"{name}_swapped"].append(table.float())
        results = {name: torch.cat(parts) for name, parts in rows.items()}
        return {name: float(values.mean()) for name, values in results.items() if len(values)}


def scores_in_words(results: dict[str, float], ceiling: float, pool: int) -> str:
    parts = [
        f"R@1 of {pool} local {results['local_r1']:.3f}, global {results['global_r1']:.3f} (ceiling {ceiling:.3f})"
    ]
    if "general_hard" in results:
        parts.append(f"true over hardest wrong: general {results['general_hard']:.3f}")
    if swapped := [
        f"{n} {results[f'{n}_swapped']:.3f}" for n in ("local", "global", "general") if f"{n}_swapped" in results
    ]:
        parts.append(f"true over swapped: {', '.join(swapped)}")
    return "; ".join(parts)
