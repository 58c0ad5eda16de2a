"""Does the loss do what it says? Trains generators that differ in the loss alone, several seeds each.

python benchmarks/quality.py run --jobs 2         trains what has no result yet; can be killed and started again
python benchmarks/quality.py table                the tables of docs/results.md
python benchmarks/quality.py pictures FILE        captions as the arms of seed 0 draw them, at the same noise

Every run is `baselines/<name>/main.py` in a process of its own, with the shipped settings but for the terms of the dual
loss. Its numbers are those of its own evaluation.json, on 1,000 captions of the test split. One JSON per run is kept in
benchmarks/results/quality/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm_plugin import TERMS, Features
from vlm_plugin.data import make_birds, open_split
from vlm_plugin.tools import training
from vlm_plugin.tools.drawing import Painter, from_bytes
from vlm_plugin.tools.evaluate import find_networks
from vlm_plugin.tools.gan import BIRDS
from vlm_plugin.tools.judge import Judge
from vlm_plugin.tools.matchers import load_matcher
from vlm_plugin.tools.pictures import sample_sheet
from vlm_plugin.tools.trainer import scaled

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality"
# Diversity: pictures of each of so many captions.
CAPTIONS, PICTURES = 40, 8


class Protocol(NamedTuple):
    """What all arms of a comparison share."""

    what: str
    from_start: bool
    """Begins from the packaged generator, which has converged without the loss."""
    birds: dict[str, int]
    legs: tuple[int, ...]
    """Steps at which every arm is evaluated."""
    longer: int
    """Steps of one more evaluation of the plain arm, which have taken it at least the time of the dual loss' last."""


PROTOCOLS = {
    "continued": Protocol(
        "from the packaged start, where plain training has converged; the main job's birds",
        from_start=True, birds=BIRDS, legs=(400, 800), longer=1400,
    ),
    "scratch": Protocol(
        "from random weights; 4,000 birds", from_start=False,
        birds={"train": 4000, "validation": 500, "test": 1000, "size": 64, "seed": 300}, legs=(500, 1500, 4500),
        longer=7500,
    ),
}  # fmt: skip
# Arm -> terms of the dual loss; without any the loss is not there at all (AttnGAN then has its DAMSM).
ARMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "both": TERMS,
    "vlm": tuple(term for term in TERMS if term.startswith("vlm_")),
    "vvm": tuple(term for term in TERMS if term.startswith("vvm_")),
    "vlm_global alone": ("vlm_global",),
    **{f"both minus {term}": tuple(other for other in TERMS if other != term) for term in TERMS},
}
MEASURES = {
    "attribute_accuracy": ("attribute accuracy", 3),
    "r_precision": ("R-precision", 3),
    "vlms": ("VLMS", 3),
    "r_precision_training": ("R-precision, own matcher*", 3),
    "vlms_training": ("VLMS, own matcher*", 3),
    "frechet_distance": ("Frechet distance", 0),
    "diversity": ("diversity", 2),
}


class Run(NamedTuple):
    """One training run."""

    protocol: str
    baseline: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.protocol}-{self.baseline}-{self.arm.replace(' ', '-')}-{self.seed}"

    @property
    def legs(self) -> tuple[int, ...]:
        """Steps at which it is evaluated."""
        protocol = PROTOCOLS[self.protocol]
        return (*protocol.legs, protocol.longer) if self.arm == "plain" else protocol.legs


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def run_all(runs: Sequence[Run], results: Path, work: Path, jobs: int, settings: dict[str, Any] | None = None) -> None:
    """Train what has no result yet.

    Args:
        runs: in the order in which they begin.
        results: folder of the JSON files.
        work: folder of the run folders; what lies there is gone on with.
        jobs: runs at a time. With GPUs they take turns on them, else they share the cores.
        settings: changes to the baseline's shipped settings.
    """
    results.mkdir(parents=True, exist_ok=True)
    for protocol in dict.fromkeys(run.protocol for run in runs):
        make_birds(work / protocol, **PROTOCOLS[protocol].birds, progress=True)
    gpus = torch.cuda.device_count()
    places: queue.Queue[dict[str, str]] = queue.Queue()
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    for job in range(jobs):
        places.put({"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": str(job % gpus)} if gpus else {}))
    todo = [(run, leg) for run in runs for leg in run.legs if leg not in _done(results, run)]
    bar = training.progress(range(len(todo)), desc="legs")
    children: set[subprocess.Popen] = set()

    def one(run: Run) -> None:
        place = places.get()
        try:
            for leg in run.legs:
                if leg not in _done(results, run):
                    _leg(run, leg, results, work, place, children, settings or {})
                    bar.update()
        finally:
            places.put(place)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ThreadPoolExecutor(jobs)
    try:
        for future in [pool.submit(one, run) for run in runs]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(children):
            child.terminate()  # it writes a checkpoint and ends
        bar.close()


def _done(results: Path, run: Run) -> dict[int, dict[str, Any]]:
    path = results / f"{run.name}.json"
    return {leg["steps"]: leg for leg in json.loads(path.read_text())["legs"]} if path.is_file() else {}


def _leg(
    run: Run, steps: int, results: Path, work: Path, place: dict[str, str], children: set, changes: dict[str, Any]
) -> None:
    """Train one run up to `steps` and keep its numbers."""
    home = work / run.name
    home.mkdir(parents=True, exist_ok=True)
    baseline = ROOT / "baselines" / run.baseline
    settings = yaml.safe_load((baseline / "cfg" / "synthetic.yml").read_text(encoding="utf-8"))
    settings |= {"sample_every": 10**9, "workers": None if torch.cuda.is_available() else 0, **changes}
    settings["vlm"] = {**settings["vlm"], "terms": list(ARMS[run.arm]) or None}
    (home / "settings.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    begun = next((path.parent for path in home.glob("*/checkpoint.pt")), None)
    start = ["--generator", baseline / "assets" / "birds.pt"] if PROTOCOLS[run.protocol].from_start else []
    new = ["--cfg", home / "settings.yml", "--data", work / run.protocol, "--out", home, "--seed", run.seed]
    new += [*(start or ["--from-scratch"]), *(["--vlm"] if ARMS[run.arm] else [])]
    words = [sys.executable, baseline / "main.py", "--steps", steps, *(["--resume", begun] if begun else new)]
    with (home / "output.txt").open("a") as output:
        child = subprocess.Popen(list(map(str, words)), stdout=output, stderr=output, env=os.environ | place, cwd=work)
        children.add(child)
        status = child.wait()
        children.discard(child)
    if status:
        raise RuntimeError(f"{run.name} ended with status {status}: see {home / 'output.txt'}")
    (folder,) = (path.parent for path in home.glob("*/evaluation.json"))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    rows = {row["name"]: {k: number["value"] for k, number in row["values"].items()} for row in evaluation["rows"]}
    leg: dict[str, Any] = {"steps": steps, **rows["after"], "diversity": diversity(folder)}
    path = results / f"{run.name}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {"legs": []}
    if begun is None:
        # From the pictures of the untrained state to the last checkpoint: training alone.
        seconds = (folder / "checkpoint.pt").stat().st_mtime - (folder / "before.pt").stat().st_mtime
        earlier["seconds_per_step"] = seconds / steps
    fixed = {name: evaluation["manifest"][name] for name in ("data_digest", "evaluator", "judge", "pictures", "device")}
    content = run._asdict() | {"threads": place["OMP_NUM_THREADS"], "manifest": fixed, "real": rows["real"]}
    content |= {"before": rows["before"], "versions": evaluation["manifest"]["versions"], **earlier}
    training.write_json(content | {"legs": [*earlier["legs"], leg]}, path)


@torch.no_grad()
def diversity(folder: Path) -> float:
    """How different a generator's pictures of one caption are: the mean distance of two, in the judge's features.

    Args:
        folder: a run's folder.

    Returns:
        The mean over captions of `spread_of`, from 0 up.
    """
    trainer, saved = find_networks(folder)
    generator = trainer.load_generator(saved, str(folder)).eval()
    matcher = load_matcher(saved.matcher, saved.data)

    def draw(noise: Tensor, text: Features) -> Tensor:
        return generator.draw(noise, scaled(text) if saved.normalise_text else text)[0]

    painter, judge = Painter(draw, matcher, generator.noise_dim), Judge.load()
    captions = [record.captions[0] for record in open_split(saved.data, "test")[:CAPTIONS]]
    spreads = []
    for row, caption in enumerate(captions):
        numbers = range(row * PICTURES, (row + 1) * PICTURES)
        spreads.append(spread_of(judge.features(painter.some([caption] * PICTURES, numbers))))
    return statistics.fmean(spreads)


def spread_of(features: Tensor) -> float:
    """Mean Euclidean distance of two different rows of `(N, F)`."""
    return float(torch.pdist(features).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def paired_t_test(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t-test, NaN for fewer than two differences.

    Source: with x = atan(t / sqrt(v)) the density of Student's t with v degrees of freedom is proportional to
    cos(x)^(v - 1), which is summed up numerically here.
    """
    if len(differences) < 2:
        return float("nan")
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return 0.0 if mean else 1.0
    freedom = len(differences) - 1
    angle = np.arctan(abs(mean) / (deviation / np.sqrt(len(differences))) / np.sqrt(freedom))
    tail, half = (_area(low, freedom) for low in (angle, 0.0))
    return float(tail / half)


def _area(low: float, freedom: int) -> float:
    """Of cos(x)^(freedom - 1), from `low` to pi / 2, by the midpoint rule."""
    width = (np.pi / 2 - low) / 20_000
    x = low + width * (np.arange(20_000) + 0.5)
    return float((np.cos(x) ** (freedom - 1)).sum() * width)


def table(results: Path) -> str:
    """Every comparison as Markdown: mean and standard deviation over seeds, and differences to plain paired by seed."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    parts = []
    for protocol, baseline in itertools.product(PROTOCOLS, ("dfgan", "attngan")):
        own = [run for run in runs if (run["protocol"], run["baseline"]) == (protocol, baseline)]
        if own:
            parts.append(_comparison(protocol, baseline, own))
    return "\n\n".join(parts)


def _comparison(protocol: str, baseline: str, runs: Sequence[dict[str, Any]]) -> str:
    by_arm: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for run in runs:
        by_arm[run["arm"]][run["seed"]] = run
    head = ["arm", "steps", "seeds", *(title for title, _ in MEASURES.values()), "accuracy over plain", "p", "s a step"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    first = runs[0]
    for name in ("real", "before"):
        values = [_number([first[name][key]] if key in first[name] else [], key) for key in MEASURES]
        lines.append(_line([name, "", "", *values, "", "", ""]))
    plain_at = {seed: {leg["steps"]: leg for leg in run["legs"]} for seed, run in by_arm["plain"].items()}
    steps = sorted({leg["steps"] for run in runs for leg in run["legs"]})
    for step, (arm, seeds) in itertools.product(steps, by_arm.items()):
        legs = {seed: leg for seed, run in seeds.items() for leg in run["legs"] if leg["steps"] == step}
        if not legs:
            continue
        values = [_number([leg[key] for leg in legs.values() if key in leg], key) for key in MEASURES]
        over = [
            leg["attribute_accuracy"] - plain_at[seed][step]["attribute_accuracy"]
            for seed, leg in legs.items()
            if arm != "plain" and step in plain_at.get(seed, {})
        ]
        p = paired_t_test(over)
        cost = [seeds[seed]["seconds_per_step"] for seed in legs if "seconds_per_step" in seeds[seed]]
        lines.append(
            _line([
                arm, str(step), str(len(legs)), *values, _number(over, "attribute_accuracy", sign="+"),
                "" if np.isnan(p) else f"{p:.3f}", f"{statistics.fmean(cost):.2f}" if cost else "",
            ])
        )  # fmt: skip
    missing = [arm for arm in ARMS if not by_arm[arm]]
    title = f"{baseline}, {PROTOCOLS[protocol].what}:"
    return "\n".join([title, "", *lines, *(["", f"Not run: {', '.join(missing)}."] if missing else [])])


def _number(values: Sequence[float], key: str, sign: str = "") -> str:
    if not values:
        return ""
    digits = MEASURES[key][1]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{spread}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def pictures(path: Path, work: Path, protocol: str, baseline: str, arms: Sequence[str]) -> None:
    """Write the shown captions as each arm of seed 0 draws them."""
    columns: dict[str, list[Tensor]] = {}
    for arm in arms:
        home = work / Run(protocol, baseline, arm, 0).name
        content = torch.load(next(home.glob("*/report.pt")), weights_only=True)
        for name, column in (("real", "real"), ("before", "before"), ("after", arm)):
            columns.setdefault(column, [from_bytes(rows[:3]) for rows in content["pictures"][name]])
    order = ["real", "before", *arms]
    sample_sheet(path, content["captions"], {name: columns[name] for name in order})


def main(argv: Sequence[str] | None = None) -> None:
    """The three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table", "pictures"))
    parser.add_argument("file", nargs="?", type=Path, help="of pictures")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="continued")
    parser.add_argument("--baseline", choices=("dfgan", "attngan"), default="dfgan")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["both", "plain", "vlm", "vvm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=max(torch.cuda.device_count(), 1), help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where run folders are made")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    if arguments.command == "table":
        print(table(RESULTS))
    elif arguments.command == "pictures":
        if arguments.file is None:
            parser.error("pictures: expected the file to write")
        pictures(arguments.file, work, arguments.protocol, arguments.baseline, arguments.arms)
    else:
        runs = [
            Run(arguments.protocol, arguments.baseline, arm, seed)
            for seed, arm in itertools.product(arguments.seeds, arguments.arms)
        ]
        run_all(runs, RESULTS, work, arguments.jobs)


if __name__ == "__main__":
    main()
