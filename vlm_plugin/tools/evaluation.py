"""The numbers of a results table: agreement of pictures with captions, and distance to real pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vlm_plugin.features import Features
from vlm_plugin.matching import unit
from vlm_plugin.model import VLM
from vlm_plugin.tools.judge import Judge, attribute_accuracy

CANDIDATES = 100
_CHUNK = 100
_NAMES = {
    "attribute_accuracy": "attribute accuracy",
    "r_precision": "R-precision",
    "vlms": "VLMS",
    "frechet_distance": "Frechet distance",
}


def r_precision(
    images: Tensor, captions: Tensor, mismatched: Tensor, candidates: int = CANDIDATES, seed: int = 0
) -> float:
    """Share of pictures whose own caption ranks first among `candidates`, by the cosine of global vectors.

    Args:
        images: `(N, D)` global image vectors.
        captions: `(N, D)` sentence vectors, row i the caption that picture i was drawn from.
        mismatched: `(N, N)` bool: caption j may serve picture i as a wrong one (its own never does).
        candidates: the right caption and `candidates - 1` wrong ones, drawn without replacement (all there are, if
            fewer).
        seed: draws them.

    Returns:
        A share in [0, 1]; chance is 1 / candidates.

    Source: AttnGAN's R-precision protocol.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = (unit(images.float()) @ unit(captions.float()).T).cpu()
    # Random keys, with what is not allowed sent to the end: the first ones are a draw without replacement.
    allowed = mismatched.cpu() & ~torch.eye(len(scores), dtype=torch.bool)
    keys = torch.rand(scores.shape, generator=generator).masked_fill(~allowed, 2.0)
    order, drawn = keys.sort(1), min(candidates - 1, len(scores) - 1)
    wrong = scores.gather(1, order.indices[:, :drawn]).masked_fill(order.values[:, :drawn] > 1, -math.inf)
    return float((scores.diagonal()[:, None] > wrong).all(1).float().mean())


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of two sets of features, each taken as a Gaussian. Computed by torchmetrics.

    Args:
        real: `(N, F)`.
        fake: `(M, F)`.

    Returns:
        A distance >= 0. It is an FID only for Inception's features, and must be named after the network that made
        these.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(nn.Module):
        num_features = real.shape[1]

        def forward(self, features: Tensor) -> Tensor:
            return features

    # One process computes the table: to sync would wait for the others for ever.
    metric = FrechetInceptionDistance(feature=Given(), sync_on_compute=False)
    metric.update(real.cpu(), real=True)
    metric.update(fake.cpu(), real=False)
    return float(metric.compute())


class Table:
    """Scores sets of pictures of the same captions against the same references.

    Args:
        captions: N captions of the test split, one a picture.
        mismatched: `(N, N)` bool: caption j may serve picture i as a wrong one.
        reference: `(M, 3, S, S)` real pictures in [-1, 1] that distances are measured to.
        matcher: the matcher that scores R-precision and VLMS.
        trained_with: the fingerprint of the matcher that trained the generator, or None: its own scores are circular.
        judge: the birds' attribute classifier; None for other data.
    """

    def __init__(
        self,
        captions: Sequence[str],
        mismatched: Tensor,
        reference: Tensor,
        matcher: VLM,
        trained_with: str | None,
        judge: Judge | None,
    ) -> None:
        self.captions, self.mismatched = list(captions), mismatched
        self.matcher, self.judge = matcher.eval(), judge
        self.circular = trained_with == matcher.fingerprint
        with torch.no_grad():
            self.text = _chunked(matcher.encode_text, self.captions)
            self.reference = self._features(reference)
        self.rows: dict[str, dict[str, float]] = {}

    @torch.no_grad()
    def add(self, name: str, pictures: Tensor, distance_of: Tensor | None = None) -> dict[str, float]:
        """Score pictures and keep the row.

        Args:
            name: the row's name.
            pictures: `(N, 3, S, S)` in [-1, 1], row i drawn from caption i.
            distance_of: pictures to measure the distance of in their place (real ones, of another split).
        """
        device = self.matcher.device
        images, scores = [], []
        for start in range(0, len(pictures), _CHUNK):
            part = pictures[start : start + _CHUNK].to(device)
            image = self.matcher.encode_image(part)
            images.append(image.pooled)
            if self.matcher.scorer is not None:
                text = Features(*(t[start : start + _CHUNK] for t in self.text))
                scores.append(self.matcher.scorer(image, text, "caption").sigmoid())
        row = {}
        if self.judge is not None:
            found = torch.cat([self.judge.find(p.to(device)) for p in pictures.split(_CHUNK)])
            row["attribute_accuracy"] = float(attribute_accuracy(found, self.captions).mean())
        row["r_precision"] = r_precision(torch.cat(images), self.text.pooled, self.mismatched)
        if scores:
            row["vlms"] = float(torch.cat(scores).mean())
        features = self._features(pictures if distance_of is None else distance_of)
        row["frechet_distance"] = frechet_distance(self.reference, features)
        self.rows[name] = row
        return row

    def _features(self, pictures: Tensor) -> Tensor:
        device = self.matcher.device
        with torch.no_grad():
            if self.judge is not None:
                return torch.cat([self.judge.features(p.to(device)) for p in pictures.split(_CHUNK)])
            return torch.cat([self.matcher.encode_image(p.to(device)).pooled for p in pictures.split(_CHUNK)])

    def describe(self) -> dict[str, str]:
        """Column -> what it is and who computed it."""
        mark = " (circular: this matcher trained the generator)" if self.circular else ""
        matcher = f"matcher {self.matcher.fingerprint}{mark}"
        network = "judge" if self.judge is not None else matcher
        candidates = min(CANDIDATES, len(self.captions))
        known = {
            "attribute_accuracy": "share of the attributes named by the caption that the judge finds, higher is better",
            "r_precision": f"own caption first of {candidates}, by {matcher}, higher is better",
            "vlms": f"mean score of picture and caption, by {matcher}, higher is better",
            "frechet_distance": f"Frechet distance on features (not an FID) of the {network}, lower is better",
        }
        return {name: known[name] for name in self._columns()}

    def _columns(self) -> list[str]:
        return list(next(iter(self.rows.values())))

    def text_table(self) -> str:
        """A Markdown table, circular columns marked with an asterisk, and what the columns mean."""
        columns = self._columns()
        by_matcher = ("r_precision", "vlms", *(() if self.judge is not None else ("frechet_distance",)))
        star = {c: "*" if self.circular and c in by_matcher else "" for c in columns}
        names = [_NAMES[c] + star[c] for c in columns]
        lines = ["| pictures | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(columns)]
        for name, row in self.rows.items():
            cells = [f"{row[c]:.4g}" if c == "frechet_distance" else f"{row[c]:.3f}" for c in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        notes = [f"{n}: {self.describe()[c]}" for n, c in zip(names, columns, strict=True)]
        return "\n".join([*lines, "", f"{len(self.captions)} captions of the test split", *notes])


def _chunked(encode: Callable[[Sequence[str]], Features], captions: Sequence[str]) -> Features:
    parts = [encode(captions[i : i + _CHUNK]) for i in range(0, len(captions), _CHUNK)]
    longest = max(p.mask.shape[1] for p in parts)

    def padded(tensor: Tensor) -> Tensor:
        missing = longest - tensor.shape[1]
        return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], dim=1)

    return Features(
        torch.cat([padded(p.local) for p in parts]),
        torch.cat([p.pooled for p in parts]),
        torch.cat([padded(p.mask) for p in parts]),
    )
