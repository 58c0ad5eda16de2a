"""The quality benchmark: its statistics, its tables, and a grid of tiny runs that is gone on with."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image, ImageColor

from benchmarks.quality.figure import LINES, draw, drawn, points
from benchmarks.quality.plan import ARMS, PROTOCOLS, SHIPPED, Protocol, Run, plain_of
from benchmarks.quality.run import RESULTS, Grid, main, pictures, spread_of
from benchmarks.quality.tables import MEASURES, all_runs, blocks, fill, paired_t_test, summary, table, terms
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
    vlm, vvm = ARMS["vlm"].terms, ARMS["vvm"].terms
    assert set(vlm) | set(vvm) == set(ARMS["both"].terms) == set(TERMS)
    assert not set(vlm) & set(vvm)
    for term in TERMS:
        assert {*ARMS[f"both minus {term}"].terms, term} == set(TERMS)
    assert [name for name, arm in ARMS.items() if arm.is_plain and not arm.is_recipe] == ["plain"]


def test_settings_of_runs(tmp_path: Path) -> None:
    def settings(*run: object) -> dict:
        return Grid(tmp_path, tmp_path, jobs=1)._settings(Run(*run))

    shipped = yaml.safe_load((tiny.ROOT / "baselines" / "dfgan" / "cfg" / "synthetic.yml").read_text())
    own = settings("continued", "dfgan", "both", 0, SHIPPED["dfgan"])
    ours = ("vlm", "sample_every", "workers", "precision")
    assert {k: v for k, v in own.items() if k not in ours} == {k: v for k, v in shipped.items() if k not in ours}
    assert own["precision"] == "bfloat16"
    assert settings("continued", "dfgan", "both, float32", 0)["precision"] == "float32"
    assert own["vlm"] == shipped["vlm"] | {"terms": list(TERMS)}
    for protocol in ("tuning", "slower", "scratch", "emoji"):
        earlier = settings(protocol, "dfgan", "both", 0)
        assert (earlier["generator_lr"], earlier["discriminator_lr"]) == (2e-4, 4e-4)
        assert (earlier["vlm"]["lambda_vvm"], earlier["vlm"]["lambda_vlm"]) == (0.1, 0.4)
    quicker = settings("tuning", "dfgan", "both, rates x 2", 0)
    assert (quicker["generator_lr"], quicker["discriminator_lr"]) == (4e-4, 8e-4)
    heavier = settings("tuning", "attngan", "plain, DAMSM x 4", 0)["damsm"]
    shipped = yaml.safe_load((tiny.ROOT / "baselines" / "attngan" / "cfg" / "synthetic.yml").read_text())["damsm"]
    assert heavier == shipped | {"weight": pytest.approx(4 * shipped["weight"])}
    larger = settings("large", "attngan", "both", 0)
    assert (larger["base_size"] * 2 ** (larger["stages"] - 1), larger["gf_dim"], larger["batch"]) == (256, 32, 20)
    assert larger["vlm"]["lambda_vlm"] == 0.4
    later = settings("scratch", "dfgan", "both, from step 1000", 0)["vlm"]
    assert (later["vlm_start"], later["vvm_start"]) == (1000, 1000)


def test_alternatives_train_dfgan_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--baseline", "attngan", "--arms", "both", "DAMSM"])
    assert "expected arms of the dual loss for attngan, got DAMSM, DF-GAN's" in capsys.readouterr().err


def test_names_of_files() -> None:
    assert Run("tuning", "dfgan", "the judge's own loss*", 3).name == "tuning-dfgan-the-judges-own-loss-3"
    assert Run("tuning", "dfgan", "both, rates x 2", 0, 2.0).name == "tuning-dfgan-both-rates-x-2-x2-0"
    names = {Run("tuning", "dfgan", arm, 0).name for arm in ARMS}
    assert len(names) == len(ARMS)


@pytest.mark.parametrize("baseline", ["dfgan", "attngan"])
def test_arms_have_the_shipped_weights(baseline: str) -> None:
    settings = yaml.safe_load((tiny.ROOT / "baselines" / baseline / "cfg" / "synthetic.yml").read_text())["vlm"]
    for name in ("both", "vlm", "vvm", "both minus vlm_local"):
        weights = (SHIPPED[baseline] * ARMS[name].lambda_vvm, SHIPPED[baseline] * ARMS[name].lambda_vlm)
        assert weights == pytest.approx((settings["lambda_vvm"], settings["lambda_vlm"]))
    assert settings["terms"] is None


def write(
    folder: Path, arm: str, seed: int, accuracies: dict[int, float], seconds: float = 0.5, factor: float = 1.0
) -> None:
    numbers = dict.fromkeys(MEASURES, 0.25) | {"frechet_distance": 600.0 + seed}
    run = Run("continued", "dfgan", arm, seed, factor)
    legs = [{"steps": steps, **numbers, "attribute_accuracy": value} for steps, value in accuracies.items()]
    content = run._asdict() | {"real": {"vlms": 0.7}, "before": numbers, "seconds_per_step": seconds, "legs": legs}
    (folder / f"{run.name}.json").write_text(json.dumps(content))


def cells(text: str) -> dict[tuple[str, str], list[str]]:
    rows = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, second, *others = (cell.strip() for cell in line.strip("|").split("|"))
            rows[first, second] = others
    return rows


def test_the_table(tmp_path: Path) -> None:
    for seed, (plain, both) in enumerate([(0.60, 0.70), (0.62, 0.70), (0.61, 0.73)]):
        write(tmp_path, "plain", seed, {400: plain, 1400: 0.5})
        write(tmp_path, "both", seed, {400: both}, seconds=0.8)
    write(tmp_path, "both", 3, {800: 0.7}, seconds=7.0)
    write(tmp_path, "both", 1, {400: 0.75}, factor=2)
    write(tmp_path, "both", 4, {400: 0.77}, factor=2)
    for seed in (1, 2):
        write(tmp_path, "vvm", seed, {400: 0.64 + 0.02 * seed})
    rows = cells(table(tmp_path))
    assert rows["plain", "400"][:4] == ["3", "0.610 ± 0.010", "", ""]
    assert rows["plain", "400"][-1] == "0.50"
    # Differences .10, .08, .12: t = .1 / (.02 / sqrt 3) = 8.66 with 2 degrees of freedom.
    assert rows["both", "400"][:4] == ["3", "0.710 ± 0.017", "+0.100 ± 0.020", "0.013"]
    assert rows["both", "400"][-1] == "0.80"
    # What ships is marked, a difference of fewer seeds than the row has says so, and two seeds are no test.
    ships = rows["**both, weights x 2** (ships)", "400"]
    assert ships[:4] == ["2", "0.760 ± 0.014", "+0.130 (1 seed)", ""]
    assert rows["vvm", "400"][:4] == ["2", "0.670 ± 0.014", "+0.055 ± 0.021", ""]
    assert rows["plain", "1400"][1] == "0.500 ± 0.000"
    assert rows["real", ""][1:7] == ["", "", "", "", "0.700", ""]
    assert rows["before", ""][:2] == ["", "0.250"]
    # Beside the accuracy, the distance alone has its differences: those of one seed are equal.
    head = rows["arm", "steps"]
    assert [number for number, title in enumerate(head) if title == "over plain"] == [2, 9]
    assert (head[8], rows["both", "400"][9]) == ("Frechet distance", "+0 ± 0")
    # 800 steps at 0.8 seconds, the median of the arm that takes most: one run of it was slow.
    assert "Not run: vlm, both minus vlm_local," in table(tmp_path)
    assert "feature matching; up to 11 minutes of one core each for 800 steps of a seed." in table(tmp_path)
    assert "rougher" not in table(tmp_path)
    assert table(tmp_path / "nothing") == ""


def test_untrained_generators_differ_by_seed(tmp_path: Path) -> None:
    for seed, before in enumerate([0.20, 0.22]):
        for arm in ("plain", "both"):
            run = Run("scratch", "dfgan", arm, seed)
            numbers = dict.fromkeys(MEASURES, before)
            content = run._asdict() | {"real": {"vlms": 0.7}, "before": numbers, "legs": [{"steps": 500, **numbers}]}
            (tmp_path / f"{run.name}.json").write_text(json.dumps(content))
    rows = cells(table(tmp_path))
    assert rows["before", ""][:2] == ["2", "0.210 ± 0.014"]
    assert rows["real", ""][0] == ""


def test_both_halves_against_either_and_against_the_same_time(tmp_path: Path) -> None:
    for seed, (plain, both) in enumerate([(0.60, 0.70), (0.62, 0.70), (0.61, 0.73)]):
        write(tmp_path, "plain", seed, {800: plain, 1400: plain + 0.05, 2600: plain + 0.01})
        write(tmp_path, "both", seed, {800: both, 1400: both + 0.04})
        write(tmp_path, "vvm", seed + 1, {800: both - 0.01})
        write(tmp_path, "both minus vlm_local", seed, {800: both - 0.02})
        write(tmp_path, "DAMSM", seed, {800: both - 0.03}, factor=4)
        write(tmp_path, "vlm", seed, {800: both - 0.04}, factor=1.2)
        write(tmp_path, "vvm", seed, {800: both - 0.04}, factor=1.2)
        write(tmp_path, "both, sharper", seed, {800: both - 0.03})
    write(tmp_path, "both", 0, {800: 0.75}, factor=2)
    write(tmp_path, "DAMSM", 0, {800: 0.7}, factor=2)
    rows = cells(table(tmp_path))
    # Differences .10, .08, .12: t = .1 / (.02 / sqrt 3) = 8.66 with 2 degrees of freedom.
    assert rows["both", "plain at equal steps (800 steps)"] == ["3", "+0.100 ± 0.020", "0.013", "+0 ± 0", "1.000"]
    later = rows["both", "plain after about the same time (1400 steps)"]
    assert later[:3] == ["3", "+0.050 ± 0.020", "0.049"]
    after_1400 = cells(table(tmp_path).partition("after 1400 steps")[2])
    assert after_1400["both", "plain at equal steps (1400 steps)"][:2] == ["3", "+0.090 ± 0.020"]
    assert after_1400["both", "plain after about the same time (2600 steps)"][:2] == ["3", "+0.130 ± 0.020"]
    # Seeds 1 and 2 alone have both runs: .70 - .69 and .73 - .69.
    assert rows["both", "the visual half alone (800 steps)"][:2] == ["2", "+0.025 ± 0.021"]
    assert ("both", "the text half alone (800 steps)") not in rows
    assert rows["both", "the text half alone, at equal gradient (800 steps)"][:2] == ["3", "+0.040 ± 0.000"]
    assert ("both", "the visual half alone, at equal gradient (800 steps)") not in rows
    assert rows["both", "both minus vlm_local (800 steps)"][:2] == ["3", "+0.020 ± 0.000"]
    assert ("both", "DAMSM, weights x 4 (800 steps)") not in rows
    assert rows["both, weights x 2", "DAMSM, weights x 2 (800 steps)"][:2] == ["1", "+0.050"]
    assert ("both, weights x 2", "both minus vlm_local (800 steps)") not in rows
    assert not any("sharper" in what for arm, what in rows if arm.startswith("both") and "steps)" in what)
    assert rows["both, weights x 2", "plain at equal steps (800 steps)"][:3] == ["1", "+0.150", ""]


def test_a_page_is_filled_with_what_was_measured(tmp_path: Path) -> None:
    for seed, (plain, both) in enumerate([(0.60, 0.70), (0.62, 0.70), (0.61, 0.73)]):
        write(tmp_path, "plain", seed, {800: plain, 1400: plain})
        write(tmp_path, "both", seed, {800: both, 1400: both + 0.01}, factor=SHIPPED["dfgan"])
        write(tmp_path, "both", seed + 1, {800: 0.1}, factor=8)
    page = "Before.\n<!-- test command -->\n<!-- headline -->\nold\n<!-- end -->\nBetween.\n"
    page += "<!-- scratch dfgan -->\n<!-- end -->\nAfter."
    page = "<!-- continued dfgan -->\n<!-- end -->\n<!-- all continued dfgan -->\n<!-- end -->\n" + page
    filled = fill(page, tmp_path)
    assert fill(filled, tmp_path) == filled
    brief, _, rest = filled.partition("<!-- all continued dfgan -->")
    full, _, filled = rest.partition("<!-- end -->\n")
    # Briefly: the goal's measures, and no pair but those of what ships with what the rows do not hold.
    assert brief.startswith("<!-- continued dfgan -->\n| arm | steps | seeds | attribute accuracy | over plain | p |")
    assert "VLMS" not in brief
    assert "VLMS" in full
    assert "plain at equal steps" not in brief
    assert "plain at equal steps" in full
    assert ("both, weights x 2", "plain after about the same time (1400 steps)") in cells(brief)
    assert ("both, weights x 8", "plain after about the same time (1400 steps)") not in cells(brief)
    assert filled.startswith("Before.\n<!-- test command -->\n<!-- headline -->\n|")
    assert filled.endswith("<!-- end -->\nBetween.\n<!-- scratch dfgan -->\nNot run yet.\n<!-- end -->\nAfter.")
    row, later = (line for line in filled.splitlines() if line.startswith("| DF-GAN"))
    assert later.startswith("| DF-GAN, 2,000 birds, 1,400 steps | 3 | 0.610 ± 0.010 -> 0.720 ± 0.017 |")
    assert row.startswith("| DF-GAN, 2,000 birds, 800 steps | 3 | 0.610 ± 0.010 -> 0.710 ± 0.017 |")
    assert row.endswith("| +0.100 ± 0.020 | 0.013 |")


def test_a_row_for_readers_in_a_hurry(tmp_path: Path) -> None:
    for seed, (plain, both) in enumerate([(0.60, 0.70), (0.62, 0.70), (0.61, 0.73)]):
        write(tmp_path, "plain", seed, {400: 0.5, 800: plain})
        write(tmp_path, "both", seed, {400: 0.9, 800: both}, factor=SHIPPED["dfgan"])
    write(tmp_path, "plain", 3, {800: 0.1})
    write(tmp_path, "both", 0, {800: 0.1}, factor=8)
    head, _, *rows = summary(tmp_path).splitlines()
    titles = ("attribute accuracy", "Frechet distance")
    assert head == f"| baseline | steps | seeds | {' | '.join(f'{t}, plain -> with the loss | p' for t in titles)} |"
    # The seeds that both arms have: differences .10, .08, .12 as in the headline; the distances are equal.
    distance = rows[0].split(" | ")[5]
    assert rows == [f"| DF-GAN | 800 | 3 | 0.610 ± 0.010 -> 0.710 ± 0.017 | 0.013 | {distance} | 1.000 |"]
    assert f"<!-- summary -->\n{head}" in fill("<!-- summary -->\n<!-- end -->", tmp_path)


PAGES = ("README.md", "docs/results.md", "docs/results-recipe.md", "docs/results-tables.md")


@pytest.mark.parametrize("page", PAGES)
def test_published_tables_are_those_of_the_committed_runs(page: str) -> None:
    text = (tiny.ROOT / page).read_text(encoding="utf-8")
    assert "<!-- end -->" in text
    assert text == fill(text, RESULTS)
    assert "Not run yet." not in text


def test_every_comparison_has_its_full_table() -> None:
    text = (tiny.ROOT / "docs" / "results-tables.md").read_text(encoding="utf-8")
    for (protocol, baseline), _ in blocks(RESULTS):
        assert f"<!-- all {protocol} {baseline} -->" in text


def test_arms_are_compared_at_the_same_learning_rates() -> None:
    assert plain_of("both") == plain_of("DAMSM") == plain_of("both, from step 1000") == "plain"
    assert plain_of("both, rates x 2") == plain_of("both, moved words, rates x 2") == "plain, rates x 2"
    assert plain_of("both, generator rate x 2") == "plain, generator rate x 2"
    assert plain_of("plain, DAMSM x 16") == "plain"
    assert plain_of("both, float32") == "plain, float32"
    assert plain_of("both, rates x 2, discriminator's x 4") is None


def test_what_a_term_adds_to_the_others(tmp_path: Path) -> None:
    def write_run(arm: str, seed: int, accuracy: float, distance: float) -> None:
        run = Run("ablation", "dfgan", arm, seed, SHIPPED["dfgan"])
        numbers = dict.fromkeys(MEASURES, 0.5) | {"attribute_accuracy": accuracy, "frechet_distance": distance}
        content = run._asdict() | {"seconds_per_step": 0.6, "legs": [{"steps": 800, **numbers}]}
        (tmp_path / f"{run.name}.json").write_text(json.dumps(content))

    for seed, without in enumerate([0.60, 0.62, 0.58]):
        write_run("both", seed, 0.7, 650)
        write_run("both minus vvm_global", seed, without, 640 + seed)
    row = cells(terms(tmp_path))["`vvm_global`", "3"]
    # Differences .10, .08, .12, and 10, 9, 8: t = 9 / (1 / sqrt 3) = 15.6.
    assert row[:6] == ["+0.100 ± 0.020", "0.013", "+0.000 ± 0.000", "1.000", "+9 ± 1", "0.004"]
    assert cells(terms(tmp_path))["`vlm_local`", "0"][:6] == [""] * 6
    # There is no leg of plain training of the same time here.
    assert "up to 8 minutes of one core each for 800 steps of a seed." in table(tmp_path)


def test_the_figure_shows_means_and_deviations_by_steps(tmp_path: Path) -> None:
    for seed, (plain, both) in enumerate([(0.60, 0.70), (0.62, 0.74)]):
        write(tmp_path, "plain", seed, {400: plain, 1400: 0.5})
        write(tmp_path, "both", seed, {400: both}, factor=SHIPPED["dfgan"])
    write(tmp_path, "both", 1, {400: 0.1}, factor=8)
    write(tmp_path, "vvm", 0, {800: 0.6}, factor=SHIPPED["dfgan"])
    found = points(tmp_path)
    assert found["attngan"] == {"before": None}
    assert found["dfgan"] == {
        "before": [600.0, 0.25],
        "plain": [[400, 2, 600.5, 0.61, 0.7071, 0.0141], [1400, 2, 600.5, 0.5, 0.7071, 0.0]],
        "both": [[400, 2, 600.5, 0.72, 0.7071, 0.0283]],
        "vvm": [[800, 1, 600.0, 0.6, 0.0, 0.0]],
    }
    draw(tmp_path / "figure.png", tmp_path)
    assert drawn(tmp_path / "figure.png") == found
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    for arm in ("plain", "both", "vvm"):
        colour = ImageColor.getrgb(LINES[arm][1])
        assert (np.abs(picture - np.array(colour, dtype=float)).max(-1) < 40).sum() > 30, arm


def test_runs_of_a_comparison_were_on_one_kind_of_device() -> None:
    kinds: dict[str, set[tuple[str, int]]] = {}
    for run in all_runs(RESULTS):
        manifest = run["manifest"]
        kinds.setdefault(run["protocol"], set()).add((manifest["device"].split(":")[0], manifest["pictures"]))
    assert {protocol: len(kind) for protocol, kind in kinds.items() if len(kind) > 1} == {}


def test_another_kind_of_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol("tiny", legs=(1,), birds={"train": 2}))
    run = Run("tiny", "dfgan", "both", 0)
    other = "cpu" if torch.cuda.is_available() else "cuda"
    kept = run._asdict() | {"manifest": {"device": other}, "legs": []}
    (tmp_path / f"{run.name}.json").write_text(json.dumps(kept))
    with pytest.raises(
        ValueError, match=rf"^protocol tiny: expected a device of the kind of its runs in .*, {other}, "
    ):
        Grid(tmp_path, tmp_path / "work", jobs=1).run([run])
    assert not (tmp_path / "work").exists()


def test_the_published_figure_shows_the_committed_runs() -> None:
    assert drawn(tiny.ROOT / "docs" / "results-steps.png") == points(RESULTS)


def test_a_grid_that_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.run.CAPTIONS", 2)
    # Of twenty test birds each has a wrong caption.
    birds = {"train": 20, "validation": 0, "test": 20, "size": tiny.SIZE, "seed": 5}
    run = Run("tiny", "dfgan", "vlm", 3)
    path = tmp_path / "results" / f"{run.name}.json"

    def go(*legs: int, until: int | None = None) -> dict:
        protocol = Protocol("tiny", legs=legs, equal_time={legs[-1]: 9}, birds=birds)
        monkeypatch.setitem(PROTOCOLS, "tiny", protocol)
        Grid(tmp_path / "results", tmp_path / "work", jobs=1, settings=tiny.settings(evaluated=20)).run([run], until)
        return json.loads(path.read_text())

    first = go(1, 2, until=1)
    assert [leg["steps"] for leg in first["legs"]] == [1]
    assert (first["arm"], first["seed"]) == ("vlm", 3)
    assert set(MEASURES) <= first["legs"][0].keys()
    assert first["legs"][0]["diversity"] > 0
    assert first["seconds_per_step"] > 0
    assert first["precision"] == tiny.settings()["precision"]
    (folder,) = (tmp_path / "work" / run.name).glob("0*")
    options = json.loads((folder / "options.json").read_text())
    assert options["settings"]["vlm"]["terms"] == list(ARMS["vlm"].terms)
    assert (options["seed"], options["start"]) == (3, None)
    log = (folder / "log.jsonl").read_text().splitlines()
    assert "vlm_local" in log[0]
    assert "vvm_local" not in log[0]
    # What is there stays, numbers of pictures that are gone too, and only what is missing is done, from the checkpoint.
    (folder / "before.pt").unlink()
    both = go(1, 2)
    assert [leg["steps"] for leg in both["legs"]] == [1, 2]
    assert both | {"legs": first["legs"]} == first
    assert both["legs"][0] == first["legs"][0]
    written = path.stat().st_mtime_ns
    assert go(1, 2) == both
    assert path.stat().st_mtime_ns == written


@pytest.mark.usefixtures("in_this_process")
def test_a_recipe_is_chosen_on_the_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.run.CAPTIONS", 2)
    birds = {"train": 20, "validation": 12, "test": 10, "size": tiny.SIZE, "seed": 5}
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol("tiny", legs=(1,), birds=birds, split="validation"))
    runs = [Run("tiny", "dfgan", arm, 0, 2) for arm in ("DAMSM", "feature matching")]
    Grid(tmp_path / "results", tmp_path / "work", jobs=1, settings=tiny.settings()).run(runs)
    for run, term, weight in zip(runs, ("damsm_w0", "features_local"), ("lambda_vlm", "lambda_vvm"), strict=True):
        result = json.loads((tmp_path / "results" / f"{run.name}.json").read_text())
        assert (result["factor"], result["manifest"]["pictures"], result["manifest"]["split"]) == (2, 10, "validation")
        assert result["weights"][weight] == pytest.approx(2 * getattr(ARMS[run.arm], weight))
        assert result["legs"][0]["frechet_distance"] > 0
        (folder,) = (tmp_path / "work" / run.name).glob("0*")
        row = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
        assert row[term] > 0
        assert row[weight] == pytest.approx(2 * getattr(ARMS[run.arm], weight))


@pytest.mark.usefixtures("in_this_process")
def test_the_emoji_have_their_own_matcher_and_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(arguments: list[str]) -> None:
        folder = Path(arguments[0])
        for split, count in (("train", 12), ("validation", 6), ("test", 8)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            rows = []
            for number in range(count):
                color = ("red", "green", "blue")[number % 3]
                Image.new("RGB", (70, 70), color).save(folder / split / f"{number}.png")
                rows.append(json.dumps({"file_name": f"{number}.png", "text": f"a {color} square, number {number}"}))
            (folder / split / "metadata.jsonl").write_text("\n".join(rows))

    monkeypatch.setattr("benchmarks.quality.run.CAPTIONS", 2)
    monkeypatch.setattr("benchmarks.data.emoji.main", made)
    small = ["--encoder", "conv", "--embed-dim", tiny.DIM, "--batch", 4, "--epochs", 1]
    monkeypatch.setattr(
        "benchmarks.quality.run.MATCHERS", {"matcher.vlm.pt": small, "evaluator.vlm.pt": [*small, "--seed", 7]}
    )
    monkeypatch.setitem(PROTOCOLS, "emoji", PROTOCOLS["emoji"]._replace(legs=(1,), equal_time={1: 2}))
    runs = [Run("emoji", "dfgan", arm, 0) for arm in ("plain", "both")]
    changes = tiny.settings(image_size=64)
    Grid(tmp_path / "results", tmp_path / "work", jobs=2, settings=changes).run(runs)
    plain, both = (json.loads((tmp_path / "results" / f"{run.name}.json").read_text()) for run in runs)
    assert [leg["steps"] for leg in plain["legs"]] == [1, 2]
    assert [leg["steps"] for leg in both["legs"]] == [1]
    for result in (plain, both):
        assert result["manifest"]["evaluator"]["name"] == "emoji.evaluator.vlm.pt"
        assert result["manifest"]["judge"] is None
        leg = result["legs"][0]
        assert leg.keys() == {"steps", "versions", *MEASURES} - {"attribute_accuracy"}
    assert "| arm | steps | seeds | R-precision | over plain | p |" in table(tmp_path / "results")
    sheet = tmp_path / "sheet.png"
    pictures(sheet, tmp_path / "work", [Run("emoji", "dfgan", arm, 0) for arm in ("plain", "both")])
    with pytest.raises(FileNotFoundError, match=r"emoji-dfgan-vvm-0: expected a run with report\.pt"):
        pictures(sheet, tmp_path / "work", [Run("emoji", "dfgan", "vvm", 0)])
    assert Image.open(sheet).width > 64
    shown: list[str] = []
    monkeypatch.setattr("benchmarks.quality.run.sample_sheet", lambda path, captions, columns: shown.extend(columns))
    pictures(sheet, tmp_path / "work", [Run("emoji", "dfgan", arm, 0) for arm in ("plain", "both")])
    assert shown == ["real", "plain, 2 steps", "both, 1 steps"]
    # Trained beyond its last pictures.
    (checkpoint,) = (tmp_path / "work" / "emoji-dfgan-both-0").glob("*/checkpoint.pt")
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match=r"emoji-dfgan-both-0: expected a run with report\.pt of its last leg"):
        pictures(sheet, tmp_path / "work", [Run("emoji", "dfgan", "both", 0)])
