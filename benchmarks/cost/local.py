"""What local matching costs: block by block, against the explicit form, in the same run.

python benchmarks/cost/local.py                      the sizes of the packaged and of the published matcher
python benchmarks/cost/local.py --growth             batches of 8 to 64 as well

Takes the scores of a batch of fakes with as many anchors, and their gradient at the fakes' regions, both ways in turn:
processor time on a CPU, time between events on a GPU, the median of the rounds. Memory is the largest amount that lies
in tensors at once beside the inputs: on a GPU by its allocator, on a CPU by torch's profiler. The rows and
the machine's name go to benchmarks/results/local.json.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.markdown import markdown_table
from vlm_plugin.features import Features
from vlm_plugin.files import write_json
from vlm_plugin.matching import explicit_local_scores, local_scores
from vlm_plugin.training.run_folder import versions

RESULTS = Path(__file__).resolve().parents[1] / "results" / "local.json"
FORMS = {"explicit": explicit_local_scores, "block by block": local_scores}
MIB = 2**20


class Size(NamedTuple):
    """What is matched."""

    batch: int
    vectors: int
    regions: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch} pictures, {self.vectors} x {self.regions}, D = {self.width}"


# Words and regions of the birds' matcher (ConvEncoder), and of Inception as the paper has it.
SIZES = (Size(32, 18, 64, 128), Size(32, 64, 64, 128), Size(24, 18, 289, 256), Size(24, 289, 289, 256))


def sides(size: Size, device: torch.device) -> tuple[Features, Features]:
    """Images, which ask for a gradient, and anchors."""
    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> Features:
        local = torch.randn(size.batch, count, size.width, generator=generator).to(device)
        mask = torch.ones(size.batch, count, dtype=torch.bool, device=device)
        return Features(local, local.mean(1), mask)

    images, anchors = features(size.regions), features(size.vectors)
    images.local.requires_grad_()
    return images, anchors


def once(form: Callable[..., Tensor], images: Features, anchors: Features) -> Tensor:
    """The gradient of a sum of the scores, of another weight each."""
    scores = form(images, anchors, 4.0, 5.0)
    weights = torch.linspace(-1, 1, scores.numel(), device=scores.device).view_as(scores)
    return torch.autograd.grad((scores * weights).sum(), images.local)[0]


def seconds(form: Callable[..., Tensor], images: Features, anchors: Features) -> float:
    """How long `once` takes."""
    if images.local.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        once(form, images, anchors)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    begun = time.process_time()
    once(form, images, anchors)
    return time.process_time() - begun


def peak(form: Callable[..., Tensor], images: Features, anchors: Features) -> int:
    """Bytes that `once` has in tensors at most."""
    if images.local.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(form, images, anchors)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        once(form, images, anchors)
    live = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def row(size: Size, device: torch.device, rounds: int) -> dict[str, object]:
    """Both forms, in turn."""
    images, anchors = sides(size, device)
    gradients = {name: once(form, images, anchors) for name, form in FORMS.items()}
    first, second = gradients.values()
    taken: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, form in FORMS.items():
            taken[name].append(seconds(form, images, anchors))
    found = {name: statistics.median(values) for name, values in taken.items()}
    return {
        **size._asdict(), "seconds": found,
        "bytes": {name: peak(form, images, anchors) for name, form in FORMS.items()},
        "ratio": found["block by block"] / found["explicit"],
        "difference": float((first - second).abs().max() / second.abs().max()),
    }  # fmt: skip


def table(rows: Sequence[dict]) -> str:
    """The rows in Markdown."""
    head = ["local matching", "explicit, s", "block by block, s", "ratio", "memory, MiB", "gradient differs by"]
    cells = []
    for found in rows:
        size = Size(*(found[name] for name in Size._fields))
        before, after = found["seconds"].values()
        memory = " -> ".join(f"{number / MIB:.0f}" for number in found["bytes"].values())
        cells.append(
            [str(size), f"{before:.3f}", f"{after:.3f}", f"{found['ratio']:.2f}", memory, f"{found['difference']:.0e}"]
        )
    return markdown_table(head, cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="batches of 8 to 64 of the birds' matcher as well")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON to write")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [*SIZES, *(Size(batch, 64, 64, 128) for batch in (8, 16, 64) if arguments.growth)]
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    content = {"machine": machine, "device": device.type, "threads": 1, "versions": versions(), "rows": []}
    for size in sizes:
        content["rows"].append(row(size, device, arguments.rounds))
        write_json(content, arguments.results)
    print(table(content["rows"]))


if __name__ == "__main__":
    main()
