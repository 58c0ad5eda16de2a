"""How much of a caption its sentence vector still holds: attributes read off it by a classifier.

python benchmarks/diagnosis/probe.py [--matcher FILE]

DF-GAN sees the sentence vector alone. Two probes, a linear one and one with a hidden layer, learn the named attributes
from the vectors of the training captions and are scored on those of the validation split, whose combinations are new.
The numbers of the packaged matcher are kept in benchmarks/results/probe.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.markdown import markdown_table
from benchmarks.quality.plan import PROTOCOLS
from vlm_plugin import VLM
from vlm_plugin.data import make_birds, open_split
from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.files import write_json
from vlm_plugin.matcher.choose import PACKAGED, load_matcher
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "probe.json"
STEPS, BATCH = 1200, 256


class Vectors(NamedTuple):
    """Captions: `(N, D)` sentence vectors, and what they say, see `said_by`."""

    sentences: Tensor
    values: Tensor
    named: Tensor


@torch.no_grad()
def encoded(matcher: VLM, captions: Sequence[str]) -> Vectors:
    """The matcher's sentence vectors of captions of birds."""
    rows = [matcher.encode_text(captions[i : i + BATCH]).pooled for i in range(0, len(captions), BATCH)]
    return Vectors(torch.cat(rows), *said_by(captions))


class Probe(nn.Module):
    """Reads every attribute off a sentence vector.

    Args:
        vectors: those it will learn from; their mean and deviation set its scale.
        hidden: width of a hidden layer in front of each attribute's classes; 0 for a linear probe.
    """

    def __init__(self, vectors: Tensor, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("deviation", vectors.std(0))
        width = vectors.shape[1]
        inner = hidden or width
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Linear(width, hidden), nn.ReLU()) if hidden else nn.Identity(),
                nn.Linear(inner, len(values)),
            )
            for values in ATTRIBUTES.values()
        )

    def forward(self, sentences: Tensor) -> list[Tensor]:
        """`(N, values)` logits of each attribute."""
        scaled = (sentences - self.mean) / self.deviation
        return [head(scaled) for head in self.heads]

    def fit(self, data: Vectors, seed: int = 0) -> None:
        """Train on named attributes alone."""
        generator = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(self.parameters(), lr=1e-3)
        for _ in progress(range(STEPS)):
            rows = torch.randint(len(data.sentences), (BATCH,), generator=generator)
            loss = torch.zeros(())
            for column, logits in enumerate(self(data.sentences[rows])):
                named = data.named[rows, column]
                if named.any():
                    loss = loss + F.cross_entropy(logits[named], data.values[rows, column][named])
            adam.zero_grad()
            loss.backward()
            adam.step()

    @torch.no_grad()
    def shares(self, data: Vectors) -> dict[str, float]:
        """Attribute -> share of its mentions that are read rightly; and `all` of them together."""
        found = torch.stack([logits.argmax(1) for logits in self(data.sentences)], 1)
        right = (found == data.values) & data.named
        columns = {name: float(right[:, k].sum() / data.named[:, k].sum()) for k, name in enumerate(ATTRIBUTES)}
        return columns | {"all": float(right.sum() / data.named.sum())}


def table(content: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """What the probes read off, as Markdown."""
    lines = [
        [what, split, *(f"{share:.3f}" for share in shares.values())]
        for what, splits in content["rows"].items()
        for split, shares in splits.items()
    ]
    return markdown_table(["probe", "captions", *ATTRIBUTES, "all"], lines, words=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matcher", default=PACKAGED, help="the packaged one when left out")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where the birds are drawn")
    parser.add_argument("--captions", type=int, default=6, help="of each picture")
    parser.add_argument(
        "--results", type=Path, help=f"JSON to write (default: for the packaged matcher {RESULTS.name})"
    )
    arguments = parser.parse_args(argv)
    if arguments.results is None and arguments.matcher == PACKAGED:
        arguments.results = RESULTS
    matcher = load_matcher(arguments.matcher).requires_grad_(False)
    folder = make_birds(arguments.work / "tuning", **PROTOCOLS["tuning"].birds, progress=True)
    splits = {}
    for split in ("train", "validation"):
        captions = [c for record in open_split(folder, split) for c in record.captions[: arguments.captions]]
        splits[split] = encoded(matcher, captions)
    rows = {}
    for what, hidden in (("linear", 0), ("hidden layer of 256", 256)):
        torch.manual_seed(0)
        probe = Probe(splits["train"].sentences, hidden)
        probe.fit(splits["train"])
        rows[what] = {split: probe.shares(data) for split, data in splits.items()}
    if arguments.results:
        content = {"captions": arguments.captions, "versions": versions()}
        write_json(content | {"rows": rows}, arguments.results)
    print(table({"rows": rows}))


if __name__ == "__main__":
    main()
