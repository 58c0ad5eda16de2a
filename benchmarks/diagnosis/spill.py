"""Where a generator's distance to real pictures lies: colours that spill to parts the caption leaves open, backgrounds.

python benchmarks/diagnosis/spill.py 'continued-*' [--work runs/quality]

For each of quality/run.py's runs whose name fits and whose folder is still there, as it stands after its last step, on
the captions that it was scored on. The judge finds the attributes. The numbers are kept in
benchmarks/results/spill.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.markdown import markdown_table, mean_cell
from benchmarks.quality.plan import NAMES, PROTOCOLS, label
from vlm_plugin.data import CaptionedImages, open_split
from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import PLUMAGE, said_by
from vlm_plugin.evaluation.captions import items
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.files import write_json
from vlm_plugin.gans.find import find_networks, painter_of
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.training.ranks import progress

ROOT = Path(__file__).resolve().parents[2]
QUALITY = ROOT / "benchmarks" / "results" / "quality"
RESULTS = ROOT / "benchmarks" / "results" / "spill.json"
# Measure -> digits after the point.
COLUMNS = {"spill": 3, "backgrounds": 2, "means": 0, "covariances": 0}


def spill(found: Tensor, values: Tensor, named: Tensor) -> float:
    """How often a part that the caption leaves open has the colour that the caption gives another part.

    Args:
        found: `(N, A)` value indices that the judge finds, attributes in the order of `ATTRIBUTES`.
        values: `(N, A)` value indices that the captions say.
        named: `(N, A)` bool, whether they say one.

    Returns:
        A share, over all pictures and pairs of a named and an open part among crown, back, wings and breast. With
        independent colours it is one in eight. Source: ours.
    """
    columns = [list(ATTRIBUTES).index(part) for part in PLUMAGE]
    found, values, named = found[:, columns], values[:, columns], named[:, columns]
    pairs = named[:, :, None] & ~named[:, None, :]
    alike = values[:, :, None] == found[:, None, :]
    return float((alike & pairs).sum() / pairs.sum())


def apart(found: Tensor, real: Tensor) -> float:
    """Half the summed differences of how often each value is found, from 0 to 1 (total variation).

    Args:
        found: `(N,)` value indices.
        real: `(M,)` those of real pictures.
    """
    shares = [torch.bincount(of, minlength=int(max(found.max(), real.max())) + 1) / len(of) for of in (found, real)]
    return float((shares[0] - shares[1]).abs().sum() / 2)


def parts_of_distance(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """The Frechet distance of features `(N, F)` and `(M, F)` in its two parts: of the means, and of the covariances."""
    real, fake = real.double(), fake.double()
    cov = real.T.cov(), fake.T.cov()
    root = torch.linalg.eigvals(cov[0] @ cov[1]).real.clamp(min=0).sqrt().sum()
    means = (real.mean(0) - fake.mean(0)).square().sum()
    return float(means), float(cov[0].trace() + cov[1].trace() - 2 * root)


@torch.no_grad()
def judged(pictures: Tensor, batch: int = 100) -> tuple[Tensor, Tensor]:
    """The judge's features and what it finds, of `(N, 3, S, S)` pictures."""
    judge, parts = Judge.load(), pictures.split(batch)
    return torch.cat([judge.features(p) for p in parts]), torch.cat([judge.find(p) for p in parts])


def measure(folder: Path, split: str, count: int, size: int) -> dict[str, dict[str, float]]:
    """`real` and `generated`: the numbers of a run's folder on so many captions of a split, pictures of this size."""
    trainer, saved = find_networks(folder)
    generator = trainer.load_generator(saved, str(folder)).eval()
    matcher = load_matcher(saved.matcher, saved.data)
    records = open_split(saved.data, split)
    chosen = items([len(record.captions) for record in records], count)
    captions = [records[item.record].captions[item.number] for item in chosen]

    painter = painter_of(generator, saved, matcher)
    images = CaptionedImages(records, size, train=False)
    # Each real picture once, however many of its captions are drawn: as the distance is measured.
    once: dict[int, int] = {}
    for number, item in enumerate(chosen):
        once.setdefault(item.record, number)
    real = judged(torch.stack([images[record].image for record in once]))
    fake = judged(torch.cat(list(painter.all(captions))))
    background = list(ATTRIBUTES).index("background")
    told = {"real": [captions[number] for number in once.values()], "generated": captions}
    rows = {}
    for name, (_, found) in (("real", real), ("generated", fake)):
        rows[name] = {
            "spill": spill(found, *said_by(told[name])),
            "backgrounds": apart(found[:, background], real[1][:, background]),
        }
    rows["generated"] |= dict(zip(("means", "covariances"), parts_of_distance(real[0], fake[0]), strict=True))
    return rows


def table(runs: Sequence[Mapping[str, Any]], seeds: int = 1) -> str:
    """Runs as Markdown, mean and spread over seeds; rows of fewer seeds than that are left out."""
    rows: dict[tuple[str, str, str, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        row = (run["protocol"], run["baseline"], label(run["arm"], run["factor"]), run["steps"])
        rows.setdefault(row, []).append(run)
    lines = []
    for protocol, group in itertools.groupby(sorted(rows), key=lambda row: row[0]):
        real = next(run["real"] for run in runs if run["protocol"] == protocol)
        lines.append([protocol, "", "real", "", "", f"{real['spill']:.3f}", f"{real['backgrounds']:.2f}", "", ""])
        for row in (row for row in group if len(rows[row]) >= seeds):
            values = [run["generated"] for run in rows[row]]
            cells = [mean_cell([v[key] for v in values], digits) for key, digits in COLUMNS.items()]
            lines.append([protocol, NAMES[row[1]], row[2], str(row[3]), str(len(values)), *cells])
    head = ["protocol", "baseline", "arm", "steps", "seeds", "spill", "backgrounds apart"]
    return markdown_table([*head, "Frechet distance: means", "covariances"], lines, words=3)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what has no numbers yet, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=["continued-*"], help="names or patterns of them")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where the run folders are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON to write")
    arguments = parser.parse_args(argv)
    known = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.is_file() else {}
    names = sorted({path.stem for pattern in arguments.runs for path in QUALITY.glob(f"{pattern}.json")})
    for name in progress(names, desc="runs"):
        run = json.loads((QUALITY / f"{name}.json").read_text(encoding="utf-8"))
        folder = next((arguments.work / name).glob("*/checkpoint.pt"), Path()).parent
        protocol, steps = PROTOCOLS[run["protocol"]], run["legs"][-1]["steps"]
        if protocol.birds is None or folder == Path() or known.get(name, {}).get("steps") == steps:
            continue
        if torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)["step"] != steps:
            print(f"{name}: left out, it is being trained beyond its last result")
            continue
        what = {key: run[key] for key in ("protocol", "baseline", "arm", "seed")} | {"factor": run.get("factor", 1.0)}
        numbers = measure(folder, protocol.split, run["manifest"]["pictures"], protocol.birds["size"])
        known[name] = what | {"steps": steps} | numbers
        write_json(dict(sorted(known.items())), arguments.results)
    print(table(list(known.values())))


if __name__ == "__main__":
    main()
