"""What a training step takes on the GPU at hand: seconds and peak memory, plain and with the dual loss.

python benchmarks/cost/gpu_steps.py                       every config; a killed run goes on where it was
python benchmarks/cost/gpu_steps.py --configs dfgan/bird  one of them

Whole batches of random pictures and captions of 18 words, each config at its own batch, in float32 (convolutions in
TF32, as torch has it by default) and in bfloat16, which `precision: auto` chooses on such a GPU. The configs of 256
pixels have a matcher of full size with random weights (see cost.py, which derives what is measured here), those of 64
the packaged one. Rounds of plain steps and of steps with the loss take turns. Reading pictures and evaluation are left
out. benchmarks/results/gpu.json keeps the numbers by the GPU's name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.cost.cost import (
    ARMS,
    GIB,
    PICTURES,
    PRECISIONS,
    Workplace,
    full_matcher,
    random_batch,
    settings_of,
    workplace,
)
from benchmarks.markdown import markdown_table
from vlm_plugin.files import write_json
from vlm_plugin.matcher.choose import PACKAGED, load_matcher
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
CONFIGS = ("dfgan/scratch", "attngan/scratch", *PICTURES)
WARM_UP, ROUNDS, STEPS = 4, 3, 10


def time_steps(place: Workplace, arm: str, batch: int, steps: int) -> float:
    """Seconds on the clock of a step, the mean of several in a row."""
    inputs = random_batch(place, batch)
    _wait(place)
    start = time.perf_counter()
    for step in range(steps):
        place.trainer.step(*inputs, step, place.losses[arm])
    _wait(place)
    return (time.perf_counter() - start) / steps


def _wait(place: Workplace) -> None:
    if place.trainer.device.type == "cuda":
        torch.cuda.synchronize()


def measure(place: Workplace, batch: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Arm -> `seconds` of a step, a list with one number for each round, and `bytes`, the allocator's peak (without the
    CUDA context; 0 on a CPU)."""
    place.trainer.dtype = dtype
    peaks = {}
    for arm in ARMS:
        if on_gpu := place.trainer.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        time_steps(place, arm, batch, WARM_UP)
        peaks[arm] = torch.cuda.max_memory_allocated() if on_gpu else 0
    seconds = {arm: [] for arm in ARMS}
    for _ in range(ROUNDS):
        # In turns, so that what slows the machine slows both.
        for arm in ARMS:
            seconds[arm].append(time_steps(place, arm, batch, STEPS))
    return {arm: {"seconds": seconds[arm], "bytes": peaks[arm]} for arm in ARMS}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers as Markdown, a table for each GPU; pairs are plain / with the dual loss."""
    head = ["config", "batch", "precision", "ms a step", "ratio", "peak GiB", "hours for all its steps"]
    parts = []
    for gpu, content in results.items():
        rows = []
        for name, of in content["configs"].items():
            for precision, arms in of["precisions"].items():
                middle = {arm: statistics.median(arms[arm]["seconds"]) for arm in ARMS}
                rows.append([
                    name, str(of["batch"]), precision, " / ".join(f"{1000 * middle[arm]:.0f}" for arm in ARMS),
                    f"{middle['dual'] / middle['plain']:.2f}",
                    " / ".join(f"{arms[arm]['bytes'] / GIB:.1f}" for arm in ARMS),
                    " / ".join(f"{of['steps'] * middle[arm] / 3600:,.1f}" for arm in ARMS),
                ])  # fmt: skip
        note = (
            f"{gpu}, torch {content['versions']['torch']}. Pairs are plain / with the dual loss; medians of {ROUNDS} "
            f"rounds of {STEPS} steps in turns. Steps alone: no reading of pictures, no evaluation; the hours are "
            "worked out from them. Peaks are the allocator's, without the CUDA context."
        )
        missing = [name for name in CONFIGS if name not in content["configs"]]
        note += f" Not measured: {', '.join(missing)}." if missing else ""
        parts.append(f"{markdown_table(head, rows)}\n\n{note}")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what has no result on this GPU yet, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON to go on with; delete it to begin anew")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default: cuda)")
    arguments = parser.parse_args(argv)
    device = choose_device(arguments.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    path = arguments.results
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    here = results.setdefault(gpu, {"versions": versions(), "configs": {}})
    todo = [config for config in settings_of(arguments.configs) if config[0] not in here["configs"]]
    for name, baseline, settings in progress(todo, desc="configs"):
        torch.manual_seed(0)
        matcher = full_matcher() if name in PICTURES else load_matcher(PACKAGED, None, device)
        place = workplace(baseline, settings, matcher, str(device))
        precisions = {called: measure(place, settings.batch, dtype) for called, dtype in PRECISIONS.items()}
        here["configs"][name] = {"batch": settings.batch, "steps": settings.steps, "precisions": precisions}
        write_json(results, path)
        del place
    print(table(results))


if __name__ == "__main__":
    main()
