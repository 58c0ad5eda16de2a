"""Does the loss do what it says? Trains generators that differ in the loss alone, several seeds each.

python benchmarks/quality/run.py run --jobs 2     trains what has no result yet; can be killed and started again
python benchmarks/quality/run.py table            every table; `page FILE` fills them into README.md, docs/results*.md
python benchmarks/quality/run.py pictures FILE    captions as the arms of one seed draw them, at the same noise
python benchmarks/quality/run.py figure FILE      agreement against distance, from the packaged start

Every run is `baselines/<name>/main.py` in a process of its own (`alternatives.py` for the losses that are not ours),
with the shipped settings but for the terms of the loss and their weights, in bfloat16. Its numbers are those of an
evaluation.json, on the captions of the protocol's split: recipes are chosen with `--protocol tuning`, which sees the
validation split alone. One JSON per run is kept in benchmarks/results/quality/.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.data import emoji
from benchmarks.quality.figure import draw
from benchmarks.quality.plan import ARMS, EARLIER, PROTOCOLS, SHIPPED, Run
from benchmarks.quality.tables import BASELINES, all_runs, fill, table
from vlm_plugin import VLM
from vlm_plugin.data import make_birds, open_split
from vlm_plugin.data.images import from_bytes
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.files import write_json
from vlm_plugin.gans.find import find_networks, painter_of
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.report.sheets import sample_sheet
from vlm_plugin.training.device import choose_device
from vlm_plugin.training.ranks import progress

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quality"
# Diversity: pictures of each of so many captions.
CAPTIONS, PICTURES = 40, 8
# The emoji's matchers, as the birds' were made: the one that scores has another backbone and seed. Name -> arguments.
MATCHERS = {
    "matcher.vlm.pt": ["--encoder", "conv", "--epochs", 6, "--seed", 0],
    "evaluator.vlm.pt": ["--encoder", "shufflenet", "--epochs", 5, "--seed", 7],
}


class Materials(NamedTuple):
    """What all runs of a protocol read."""

    data: Path
    matcher: Path | None = None
    """The matcher that trains; None for the packaged one."""
    evaluator: Path | None = None
    """The matcher that scores; None for the packaged one."""


class Grid:
    """Trains the runs of a comparison, several at a time, and keeps their numbers.

    Args:
        results: folder of the JSON files.
        work: folder of the run folders; what lies there is gone on with.
        jobs: runs at a time. With GPUs they take turns on them, else they share the cores.
        settings: changes to the baselines' shipped settings.
    """

    def __init__(self, results: Path, work: Path, jobs: int, settings: dict[str, Any] | None = None) -> None:
        self.results, self.work, self.jobs, self.settings = results, work, jobs, settings or {}
        gpus = torch.cuda.device_count()
        self._has_gpu_each = jobs <= gpus
        threads = os.environ.get("OMP_NUM_THREADS") or str(max((os.cpu_count() or 1) // jobs, 1))
        # What a process gets of the machine: whoever starts one takes a place and puts it back.
        self._places: queue.Queue[dict[str, str]] = queue.Queue()
        for job in range(jobs):
            self._places.put({"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": str(job % gpus)} if gpus else {}))
        self._children: set[subprocess.Popen] = set()

    def run(self, runs: Sequence[Run], until: int | None = None) -> None:
        """Train what has no result yet.

        Args:
            runs: in the order in which they begin.
            until: leave out the legs beyond so many steps; a later call goes on with them.

        Raises:
            ValueError: runs of the same comparison were kept on another kind of device; nothing is trained.
        """
        todo = {run: [leg for leg in run.legs if until is None or leg <= until] for run in runs}
        todo = {run: [leg for leg in legs if leg not in self._done(run)] for run, legs in todo.items()}
        todo = {run: legs for run, legs in todo.items() if legs}
        for protocol in dict.fromkeys(run.protocol for run in todo):
            self._check_device(protocol)
        self.results.mkdir(parents=True, exist_ok=True)
        bar = progress(range(sum(map(len, todo.values()))), desc="legs")

        def one(run: Run, materials: Materials) -> None:
            with self._place() as place:
                for leg in todo[run]:
                    self._leg(run, leg, materials, place)
                    bar.update()

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        pool = ThreadPoolExecutor(self.jobs)
        try:
            materials = {name: self._prepare(name, pool) for name in dict.fromkeys(run.protocol for run in todo)}
            for future in [pool.submit(one, run, materials[run.protocol]) for run in todo]:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(self._children):
                child.terminate()  # it writes a checkpoint and ends
            bar.close()

    def _check_device(self, protocol: str) -> None:
        """On a GPU precision and noise are others: its runs are compared with one another alone."""
        kept = {
            run["manifest"]["device"].split(":")[0] for run in all_runs(self.results) if run["protocol"] == protocol
        }
        here = choose_device(None).type
        if others := kept - {here}:
            raise ValueError(
                f"protocol {protocol}: expected a device of the kind of its runs in {self.results}, {others.pop()}, "
                f"got {here} (move those away to begin anew; CUDA_VISIBLE_DEVICES= hides a GPU)"
            )

    @contextlib.contextmanager
    def _place(self) -> Iterator[dict[str, str]]:
        place = self._places.get()
        try:
            yield place
        finally:
            self._places.put(place)

    def _prepare(self, protocol: str, pool: ThreadPoolExecutor) -> Materials:
        """Draw the birds, or build the emoji and train their matchers."""
        folder = self.work / protocol
        if birds := PROTOCOLS[protocol].birds:
            return Materials(make_birds(folder, **birds, progress=True))
        emoji.main([str(folder)])

        def pretrain(file: Path, options: Sequence[object]) -> None:
            if not file.is_file() or file.with_name(file.name + ".state").is_file():
                words = ["-m", "vlm_plugin", "pretrain", "--data", folder, "--out", file, *options]
                with self._place() as place:
                    self._process(words, file.with_suffix(".txt"), place)

        files = {folder.with_name(f"{protocol}.{name}"): options for name, options in MATCHERS.items()}
        for future in [pool.submit(pretrain, *item) for item in files.items()]:
            future.result()
        return Materials(folder, *files)

    def _done(self, run: Run) -> set[int]:
        return {leg["steps"] for leg in self._read(run).get("legs", ())}

    def _read(self, run: Run) -> dict[str, Any]:
        path = self.results / f"{run.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _leg(self, run: Run, steps: int, materials: Materials, place: dict[str, str]) -> None:
        """Train one run up to `steps` and keep its numbers."""
        home = self.work / run.name
        home.mkdir(parents=True, exist_ok=True)
        begun = next((path.parent for path in home.glob("*/checkpoint.pt")), None)
        settings, output = self._settings(run), home / "output.txt"
        # A run scores itself: on the test split, by the packaged evaluator or its own matcher. Does the protocol ask
        # for something else?
        split, captions = PROTOCOLS[run.protocol].split, settings["evaluated"]
        elsewhere = split != "test" or materials.evaluator is not None
        if elsewhere:
            settings["evaluated"] = 2
        (home / "settings.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._process([*_training(run, home, begun, materials), "--steps", steps], output, place)
        (folder,) = (path.parent for path in home.glob("*/checkpoint.pt"))
        scored = home / f"scores-{steps}" if elsewhere else folder
        if elsewhere:
            words = ["-m", "vlm_plugin", "evaluate", folder, "--split", split, "--count", captions]
            words += [] if materials.evaluator is None else ["--evaluator", materials.evaluator]
            self._process([*words, "--out", scored], output, place)
        self._keep(run, steps, folder, scored, diversity(folder, materials.evaluator), place, timed=begun is None)

    def _settings(self, run: Run) -> dict[str, Any]:
        """The baseline's shipped settings with the run's changes."""
        shipped = ROOT / "baselines" / run.baseline / "cfg" / "synthetic.yml"
        arm, settings = ARMS[run.arm], yaml.safe_load(shipped.read_text(encoding="utf-8"))
        # Runs that share a GPU keep its machine's cores busy without processes that read for them.
        settings |= {"sample_every": 10**9, "workers": None if self._has_gpu_each else 0}
        # As all kept runs; `auto` would be another where the hardware is.
        settings["precision"] = "bfloat16"
        settings |= {} if PROTOCOLS[run.protocol].shipped else EARLIER[run.baseline]
        settings |= PROTOCOLS[run.protocol].changes.get(run.baseline, {})
        for name, value in {**arm.changes, **self.settings}.items():
            settings[name] = settings[name] | value if isinstance(value, Mapping) and name in settings else value
        settings["vlm"] |= {"terms": list(arm.terms) or None, **run.weights}
        settings["vlm"] |= {"vlm_start": arm.start, "vvm_start": arm.start}
        return settings

    def _keep(
        self, run: Run, steps: int, folder: Path, scored: Path, spread: float, place: dict[str, str], timed: bool
    ) -> None:
        """Add a leg's numbers to the run's JSON, out of its evaluation.json."""
        options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
        evaluation = json.loads((scored / "evaluation.json").read_text(encoding="utf-8"))
        rows = {row["name"]: {k: number["value"] for k, number in row["values"].items()} for row in evaluation["rows"]}
        manifest = evaluation["manifest"]
        leg = {"steps": steps, **rows.pop("after" if scored == folder else folder.name), "diversity": spread}
        leg["versions"] = manifest["versions"]
        kept = ("data_digest", "split", "evaluator", "judge", "pictures", "device")
        content = run._asdict() | ({} if ARMS[run.arm].is_plain else {"weights": run.weights}) | {
            "threads": place["OMP_NUM_THREADS"], "precision": options["precision"],
            "manifest": {name: manifest[name] for name in kept}, **rows,
        }  # fmt: skip
        if timed and (self._has_gpu_each or not torch.cuda.is_available()):
            # From the pictures of the untrained state to the last checkpoint: training alone.
            seconds = (folder / "checkpoint.pt").stat().st_mtime - (folder / "before.pt").stat().st_mtime
            content["seconds_per_step"] = seconds / steps
        earlier = self._read(run)
        content |= {name: earlier[name] for name in ("seconds_per_step", "before") if name in earlier}
        write_json(content | {"legs": [*earlier.get("legs", ()), leg]}, self.results / f"{run.name}.json")

    def _process(self, words: Sequence[object], output: Path, place: dict[str, str]) -> None:
        """Run Python with these arguments to its end, and keep what it prints."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | place
        with output.open("a") as file:
            child = subprocess.Popen(
                [sys.executable, *map(str, words)], stdout=file, stderr=file, cwd=self.work, env=environment
            )
            self._children.add(child)
            status = child.wait()
            self._children.discard(child)
        if status:
            raise RuntimeError(f"{output.parent.name} ended with status {status}: see {output}")


def _training(run: Run, home: Path, begun: Path | None, materials: Materials) -> list[object]:
    """Script and arguments, but for `--steps`, that train a run in `home`, or go on with its folder `begun`."""
    arm, baseline = ARMS[run.arm], ROOT / "baselines" / run.baseline
    others = ROOT / "benchmarks" / "quality" / "alternatives.py"
    script = [others, arm.alternative] if arm.alternative else [baseline / "main.py"]
    if begun is not None:
        return [*script, "--resume", begun]
    words = [*script, "--cfg", home / "settings.yml", "--data", materials.data, "--out", home, "--seed", run.seed]
    from_start = PROTOCOLS[run.protocol].from_start
    words += ["--generator", baseline / "assets" / "birds.pt"] if from_start else ["--from-scratch"]
    matcher = [] if materials.matcher is None else [materials.matcher]
    if not arm.is_plain:
        words += ["--vlm", *matcher]
    elif matcher:
        words += ["--text-encoder", *matcher]
    return words


@torch.no_grad()
def diversity(folder: Path, evaluator: Path | None) -> float:
    """How different a generator's pictures of one caption are: the mean distance of two.

    Args:
        folder: a run's folder.
        evaluator: the matcher in whose pooled vectors distances are taken; in the birds' judge's features when None.

    Returns:
        The mean over captions of `spread_of`, from 0 up.
    """
    place = choose_device(None)
    trainer, saved = find_networks(folder)
    generator = trainer.load_generator(saved, str(folder)).eval().to(place)
    matcher = load_matcher(saved.matcher, saved.data, place)

    painter = painter_of(generator, saved, matcher)
    if evaluator is None:
        features = Judge.load().to(place).features
    else:
        features = _pooled(load_matcher(str(evaluator), device=place))
    captions = [record.captions[0] for record in open_split(saved.data, "test")[:CAPTIONS]]
    spreads = []
    for row, caption in enumerate(captions):
        numbers = range(row * PICTURES, (row + 1) * PICTURES)
        spreads.append(spread_of(features(painter.some([caption] * PICTURES, numbers).to(place))))
    return statistics.fmean(spreads)


def _pooled(vlm: VLM) -> Callable[[Tensor], Tensor]:
    return lambda pictures: vlm.encode_image(pictures).pooled


def spread_of(features: Tensor) -> float:
    """Mean Euclidean distance of two different rows of `(N, F)`."""
    return float(torch.pdist(features).mean())


def pictures(path: Path, work: Path, runs: Sequence[Run]) -> None:
    """Write the shown captions as each run draws them after its last leg; its steps stand above its column.

    Raises:
        FileNotFoundError: a run without pictures of its last leg in `work`.
    """
    columns: dict[str, list[Tensor]] = {}
    captions: list[str] = []
    for run in runs:
        home = work / run.name
        newest = sorted((*home.glob("*/report.pt"), *home.glob("*/checkpoint.pt")), key=lambda f: f.stat().st_mtime)
        if not newest or newest[-1].name != "report.pt":
            raise FileNotFoundError(f"{home}: expected a run with report.pt of its last leg: train it first")
        content = torch.load(newest[-1], weights_only=True)
        (checkpoint,) = home.glob("*/checkpoint.pt")
        steps = torch.load(checkpoint, map_location="cpu", weights_only=True)["step"]
        captions = content["captions"]
        own = "after" if "after" in content["pictures"] else next(n for n in content["pictures"] if n != "real")
        for name, column in (("real", "real"), ("before", "before"), (own, f"{run.arm}, {steps} steps")):
            if name in content["pictures"]:
                columns.setdefault(column, [from_bytes(rows[:3]) for rows in content["pictures"][name]])
    order = sorted(columns, key=lambda name: ["real", "before"].index(name) if name in ("real", "before") else 2)
    sample_sheet(path, captions, {name: columns[name] for name in order})


def main(argv: Sequence[str] | None = None) -> None:
    """The five commands."""
    factors = f"those that ship: {SHIPPED}; 1 in protocols that keep earlier weights"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table", "page", "pictures", "figure"))
    parser.add_argument("file", nargs="?", type=Path, help="of page, pictures and figure")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="continued")
    parser.add_argument("--baseline", choices=BASELINES, default="dfgan")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["both", "plain", "vlm", "vvm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--factors", nargs="+", type=float, help=f"on the weights of the arms (default: {factors})")
    parser.add_argument("--until", type=int, metavar="STEPS", help="leave longer legs for another time")
    parser.add_argument("--jobs", type=int, default=max(torch.cuda.device_count(), 1), help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where run folders are made")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    others = [arm for arm in arguments.arms if ARMS[arm].alternative]
    if arguments.baseline != "dfgan" and others:
        parser.error(
            f"--arms: expected arms of the dual loss for {arguments.baseline}, got {', '.join(others)}, DF-GAN's"
        )
    usual = SHIPPED[arguments.baseline] if PROTOCOLS[arguments.protocol].shipped else 1.0
    runs = [
        Run(arguments.protocol, arguments.baseline, arm, seed, 1.0 if ARMS[arm].is_plain else factor)
        for seed, arm, factor in itertools.product(arguments.seeds, arguments.arms, arguments.factors or [usual])
    ]
    if arguments.command == "table":
        print(table(RESULTS))
    elif arguments.command in ("page", "pictures", "figure") and arguments.file is None:
        parser.error(f"{arguments.command}: expected the file to write")
    elif arguments.command == "page":
        page = arguments.file.read_text(encoding="utf-8")
        arguments.file.write_text(fill(page, RESULTS), encoding="utf-8")
    elif arguments.command == "figure":
        draw(arguments.file, RESULTS)
    elif arguments.command == "pictures":
        pictures(arguments.file, work, [run for run in runs if run.seed == arguments.seeds[0]])
    else:
        try:
            Grid(RESULTS, work, arguments.jobs).run(runs, arguments.until)
        except ValueError as error:
            sys.exit(f"run.py: {error}")


if __name__ == "__main__":
    main()
