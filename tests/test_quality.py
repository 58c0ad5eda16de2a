"""The quality benchmark: its statistics, its tables, and a grid of tiny runs that is gone on with."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import tiny
import torch

from benchmarks import quality
from benchmarks.quality import ARMS, PROTOCOLS, Protocol, Run, paired_t_test, run_all, spread_of, table
from vlm_plugin import TERMS


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.7062, 1, 0.05), (4.3027, 2, 0.05), (9.9248, 2, 0.01), (2.7764, 4, 0.05), (4.6041, 4, 0.01), (1.5332, 4, 0.2)],
)
def test_p_values_of_printed_tables(t: float, freedom: int, p: float) -> None:
    count = freedom + 1
    # Differences of mean m and standard deviation 1: t = m sqrt(count).
    rough = torch.arange(count, dtype=torch.float64)
    rough = (rough - rough.mean()) / rough.std()
    for sign in (1, -1):
        differences = (rough + sign * t / math.sqrt(count)).tolist()
        assert paired_t_test(differences) == pytest.approx(p, rel=1e-3)


def test_p_values_at_the_ends() -> None:
    assert math.isnan(paired_t_test([0.1]))
    assert paired_t_test([0.1, 0.1]) == 0
    assert paired_t_test([0.0, 0.0]) == 1
    assert paired_t_test([-0.1, 0.1]) == pytest.approx(1)


def test_spread_against_loops() -> None:
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    distances = [float((a - b).pow(2).sum().sqrt()) for a, b in itertools.combinations(features, 2)]
    assert spread_of(features) == pytest.approx(sum(distances) / 10)


def test_arms_differ_in_terms_alone() -> None:
    assert set(ARMS["vlm"]) | set(ARMS["vvm"]) == set(ARMS["both"]) == set(TERMS)
    assert not set(ARMS["vlm"]) & set(ARMS["vvm"])
    for term in TERMS:
        assert {*ARMS[f"both minus {term}"], term} == set(TERMS)


def write(folder: Path, arm: str, seed: int, accuracies: dict[int, float], seconds: float = 0.5) -> None:
    numbers = dict.fromkeys(quality.MEASURES, 0.25) | {"frechet_distance": 600.0}
    run = Run("continued", "dfgan", arm, seed)
    legs = [{"steps": steps, **numbers, "attribute_accuracy": value} for steps, value in accuracies.items()]
    content = run._asdict() | {"real": {"vlms": 0.7}, "before": numbers, "seconds_per_step": seconds, "legs": legs}
    (folder / f"{run.name}.json").write_text(json.dumps(content))


def test_the_table(tmp_path: Path) -> None:
    for seed, (plain, both) in enumerate([(0.60, 0.70), (0.62, 0.70), (0.61, 0.73)]):
        write(tmp_path, "plain", seed, {400: plain, 1400: 0.5})
        write(tmp_path, "both", seed, {400: both}, seconds=0.8)
    write(tmp_path, "vvm", 1, {400: 0.66})
    rows = {}
    for line in table(tmp_path).splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[cells[0], cells[1]] = cells[2:]
    assert rows["plain", "400"][:2] == ["3", "0.610 ± 0.010"]
    assert rows["plain", "400"][-3:] == ["", "", "0.50"]
    assert rows["both", "400"][:2] == ["3", "0.710 ± 0.017"]
    # Differences .10, .08, .12: t = .1 / (.02 / sqrt 3) = 8.66 with 2 degrees of freedom.
    assert rows["both", "400"][-3:] == ["+0.100 ± 0.020", "0.013", "0.80"]
    assert rows["vvm", "400"][-3:] == ["+0.040", "", "0.50"]
    assert rows["plain", "1400"][1] == "0.500 ± 0.000"
    assert rows["real", ""][1:4] == ["", "", "0.700"]
    assert rows["before", ""][1] == "0.250"
    assert "Not run: vlm, vlm_global alone, both minus vlm_local," in table(tmp_path)
    assert table(tmp_path / "nothing") == ""


def test_a_grid_that_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CAPTIONS", 2)
    birds = {"train": 20, "validation": 0, "test": 10, "size": tiny.SIZE, "seed": 5}
    run = Run("tiny", "dfgan", "vlm", 3)
    path = tmp_path / "results" / f"{run.name}.json"

    def go(*legs: int) -> dict:
        protocol = Protocol("tiny", from_start=False, birds=birds, legs=legs, longer=9)
        monkeypatch.setitem(PROTOCOLS, "tiny", protocol)
        run_all([run], tmp_path / "results", tmp_path / "work", jobs=1, settings=tiny.settings())
        return json.loads(path.read_text())

    first = go(1)
    assert [leg["steps"] for leg in first["legs"]] == [1]
    assert (first["arm"], first["seed"]) == ("vlm", 3)
    assert set(quality.MEASURES) <= first["legs"][0].keys()
    assert first["legs"][0]["diversity"] > 0
    assert first["seconds_per_step"] > 0
    (folder,) = (tmp_path / "work" / run.name).glob("0*")
    options = json.loads((folder / "options.json").read_text())
    assert options["settings"]["vlm"]["terms"] == list(ARMS["vlm"])
    assert (options["seed"], options["start"]) == (3, None)
    log = (folder / "log.jsonl").read_text().splitlines()
    assert "vlm_local" in log[0]
    assert "vvm_local" not in log[0]
    # What is there stays, and only what is missing is done, from the checkpoint.
    both = go(1, 2)
    assert [leg["steps"] for leg in both["legs"]] == [1, 2]
    assert both | {"legs": first["legs"]} == first
    assert both["legs"][0] == first["legs"][0]
    written = path.stat().st_mtime_ns
    assert go(1, 2) == both
    assert path.stat().st_mtime_ns == written
