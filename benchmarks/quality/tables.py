"""The tables of benchmarks/quality/run.py: mean and spread over seeds, and differences to plain paired by seed."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.cost import arms, cost, gpu_steps
from benchmarks.diagnosis import probe, spill
from benchmarks.markdown import markdown_table
from benchmarks.quality.plan import ARMS, NAMES, PROTOCOLS, SHIPPED, label, plain_of
from vlm_plugin import TERMS

BASELINES = tuple(NAMES)
HALVES = {"vlm": "the text half alone", "vvm": "the visual half alone"}
# The text half at so many times the weights of both has about their gradient at the picture (arms.py).
EQUAL_GRADIENT = 1.2
# Arms that are no part of the dual loss as it ships but another loss.
INSTEAD = ("global contrastive", "DAMSM", "feature matching", "plain, DAMSM x 16")
# Measure -> title, and digits after the point.
MEASURES = {
    "attribute_accuracy": ("attribute accuracy", 3),
    "r_precision": ("R-precision", 3),
    "vlms": ("VLMS", 3),
    "r_precision_training": ("R-precision, own matcher*", 3),
    "vlms_training": ("VLMS, own matcher*", 3),
    "frechet_distance": ("Frechet distance", 0),
    "diversity": ("diversity", 2),
}
# Seed -> numbers.
Legs = dict[int, dict[str, Any]]


def paired_t_test(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t-test, NaN for fewer than two differences; equal ones leave no doubt."""
    if len(differences) < 2:
        return float("nan")
    if statistics.stdev(differences) == 0:
        return 0.0 if statistics.fmean(differences) else 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def table(results: Path) -> str:
    """Every comparison as Markdown."""
    parts = [f"{baseline}, {PROTOCOLS[protocol].what}:\n\n{text}" for (protocol, baseline), text in blocks(results)]
    return "\n\n".join(parts)


def fill(page: str, results: Path) -> str:
    """A page with its tables made anew: each stands between `<!-- protocol baseline -->` and `<!-- end -->`.

    `<!-- all protocol baseline -->` stands for the same with every measure and every pair. `<!-- summary -->`,
    `<!-- headline -->` and `<!-- terms -->` are for the tables of the functions of that name, `<!-- arms -->`,
    `<!-- cost -->`, `<!-- gpu -->` (of gpu_steps.py), `<!-- probe -->` and `<!-- spill -->` for those of the scripts of
    that name (of spill.py what was measured in three seeds or more from the packaged start; `<!-- all spill -->` has
    the rest). A block without results
    says so.
    """
    tables = {f"all {protocol} {baseline}": text for (protocol, baseline), text in blocks(results)}
    tables |= {f"{protocol} {baseline}": text for (protocol, baseline), text in blocks(results, brief=True)}
    tables |= {"summary": summary(results), "headline": headline(results), "terms": terms(results)}
    tables["arms"] = arms.table(json.loads(arms.RESULTS.read_text()))
    tables["cost"] = cost.table(json.loads(cost.RESULTS.read_text())["configs"], tflops=20)
    tables["gpu"] = gpu_steps.table(json.loads(gpu_steps.RESULTS.read_text()))
    tables["probe"] = probe.table(json.loads(probe.RESULTS.read_text()))
    spilled = list(json.loads(spill.RESULTS.read_text()).values())
    tables["all spill"] = spill.table(spilled)
    tables["spill"] = spill.table([run for run in spilled if run["protocol"] == "continued"], seeds=3)

    def block(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{tables.get(found[1], 'Not run yet.')}\n<!-- end -->"

    comparisons = [f"{protocol} {baseline}" for protocol, baseline in _comparisons()]
    names = "|".join(["summary", "headline", "terms", "arms", "cost", "gpu", "probe", "spill", *comparisons])
    return re.sub(rf"<!-- ((?:all )?(?:{names})) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def blocks(results: Path, brief: bool = False) -> list[tuple[tuple[str, str], str]]:
    """(protocol, baseline) and the tables of each comparison: mean and standard deviation over seeds, and differences
    paired by seed.

    Args:
        results: folder of the JSON files.
        brief: of the measures those that the goal names, and diversity; of the pairs those of what ships.
    """
    return [
        ((protocol, baseline), _comparison(protocol, baseline, own, brief))
        for protocol, baseline in _comparisons()
        if (own := runs_of(results, protocol, baseline))
    ]


def _comparisons() -> Iterable[tuple[str, str]]:
    return itertools.product(PROTOCOLS, BASELINES)


def summary(results: Path) -> str:
    """Both halves, as they ship, against plain: a row of each baseline, for the steps that the first command trains."""
    protocol, columns = "continued", ("attribute_accuracy", "frechet_distance")
    steps, rows = PROTOCOLS[protocol].legs[1], []
    for baseline in BASELINES:
        legs = legs_of(runs_of(results, protocol, baseline))
        plain, both = legs.get(Row("plain", 1.0, steps), {}), legs.get(Row("both", SHIPPED[baseline], steps), {})
        shared = [seed for seed in plain if seed in both]
        if not shared:
            continue
        cells = []
        for m in columns:
            cells.append(" -> ".join(_number([arm[seed][m] for seed in shared], m) for arm in (plain, both)))
            cells.append(_p(differences(both, plain, m)))
        rows.append([NAMES[baseline], f"{steps:,}", str(len(shared)), *cells])
    titles = [title for m in columns for title in (f"{MEASURES[m][0]}, plain -> with the loss", "p")]
    return markdown_table(["baseline", "steps", "seeds", *titles], rows)


def headline(results: Path) -> str:
    """Both halves, as they ship, against plain: rows of each baseline, for all legs but the shortest."""
    columns = ("attribute_accuracy", "r_precision", "vlms", "frechet_distance")
    titles = [f"{MEASURES[m][0]}, plain -> with the loss" for m in columns]
    rows = []
    for baseline, protocol in itertools.product(BASELINES, (name for name, p in PROTOCOLS.items() if p.shipped)):
        legs = legs_of(runs_of(results, protocol, baseline))
        birds = PROTOCOLS[protocol].birds["train"]
        for steps in PROTOCOLS[protocol].legs[1:]:
            plain, both = legs.get(Row("plain", 1.0, steps), {}), legs.get(Row("both", SHIPPED[baseline], steps), {})
            shared = [seed for seed in plain if seed in both]
            if not shared:
                continue
            values = [
                " -> ".join(_number([arm[seed][m] for seed in shared], m) for arm in (plain, both)) for m in columns
            ]
            over = differences(both, plain, "attribute_accuracy")
            gain = _number(over, "attribute_accuracy", sign="+")
            name = f"{NAMES[baseline]}, {birds:,} birds, {steps:,} steps"
            rows.append([name, str(len(shared)), *values, gain, _p(over)])
    return markdown_table(["baseline", "seeds", *titles, "gain in accuracy", "p"], rows)


def terms(results: Path) -> str:
    """What each term adds to the other five: both halves minus both halves without it, from protocol `ablation`."""
    protocol, columns = "ablation", ("attribute_accuracy", "r_precision", "frechet_distance")
    legs, costs = legs_of(runs_of(results, protocol, "dfgan")), json.loads(arms.RESULTS.read_text())["costs"]
    steps = PROTOCOLS[protocol].legs[0]
    lines = []
    for term in TERMS:
        both, without = (Row(arm, SHIPPED["dfgan"], steps) for arm in ("both", f"both minus {term}"))
        over = {m: differences(legs.get(both, {}), legs.get(without, {}), m) for m in columns}
        cells = [cell for m in columns for cell in (_number(over[m], m, sign="+"), _p(over[m]))]
        share = f"{costs['both'] - costs[without.arm]:+.2f}"
        lines.append([f"`{term}`", str(len(over["attribute_accuracy"])), *cells, share])
    titles = [title for m in columns for title in (MEASURES[m][0], "p")]
    return markdown_table(["term", "seeds", *titles, "plain steps of processor time"], lines)


def runs_of(results: Path, protocol: str, baseline: str) -> list[dict[str, Any]]:
    """The kept runs of a comparison."""
    return [run for run in all_runs(results) if (run["protocol"], run["baseline"]) == (protocol, baseline)]


def all_runs(results: Path) -> list[dict[str, Any]]:
    """Every kept run."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


class Row(NamedTuple):
    """What is averaged over seeds: an arm, its weights' factor, and the number of steps."""

    arm: str
    factor: float
    steps: int

    @property
    def label(self) -> str:
        """The arm's name in tables."""
        return label(self.arm, self.factor)


def legs_of(runs: Iterable[dict[str, Any]]) -> dict[Row, Legs]:
    """Row -> seed -> numbers; `seconds_per_step` among them where the whole run was timed."""
    legs: dict[Row, Legs] = {}
    for run in runs:
        timed = {name: run[name] for name in ("seconds_per_step",) if name in run}
        for leg in run["legs"]:
            legs.setdefault(Row(run["arm"], run.get("factor", 1.0), leg["steps"]), {})[run["seed"]] = leg | timed
    return legs


def _comparison(protocol: str, baseline: str, runs: Sequence[dict[str, Any]], brief: bool) -> str:
    legs = legs_of(runs)
    parts = [_means(protocol, baseline, runs, brief)]
    if PROTOCOLS[protocol].split == "test":
        parts += [_contrasts(protocol, baseline, legs, brief), _missing(protocol, baseline, legs)]
    return "\n\n".join(part for part in parts if part)


def _means(protocol: str, baseline: str, runs: Sequence[dict[str, Any]], brief: bool) -> str:
    """A row for each arm and leg; of the measures that the goal names, the difference to plain beside them."""
    legs, tested = legs_of(runs), (PROTOCOLS[protocol].headline, "frechet_distance")
    wanted = (*tested, "diversity") if brief else MEASURES
    measures = [m for m in wanted if any(m in leg for seeds in legs.values() for leg in seeds.values())]

    def values(rows: Iterable[Mapping[str, float]], over: Mapping[str, list[str]]) -> list[str]:
        numbers = {m: _number([row[m] for row in rows if m in row], m) for m in measures}
        return [cell for m in measures for cell in (numbers[m], *over.get(m, ()))]

    lines = []
    for name, count, rows in _before(protocol, runs):
        lines.append([name, "", count, *values(rows, {m: ["", ""] for m in tested}), ""])
    for row in sorted(legs, key=lambda row: (row.steps, list(ARMS).index(row.arm), row.factor)):
        over = {m: _over_plain(row, legs, m) for m in tested}
        seconds = [leg["seconds_per_step"] for leg in legs[row].values() if "seconds_per_step" in leg]
        cost = f"{statistics.fmean(seconds):.2f}" if seconds else ""
        name = _shown(protocol, baseline, row)
        lines.append([name, str(row.steps), str(len(legs[row])), *values(legs[row].values(), over), cost])
    titles = [title for m in measures for title in (MEASURES[m][0], *(("over plain", "p") if m in tested else ()))]
    head = ["arm", "steps", "seeds", *titles, "s a step"]
    columns = len(head) - brief
    return markdown_table(head[:columns], [line[:columns] for line in lines])


def _before(protocol: str, runs: Sequence[dict[str, Any]]) -> Iterable[tuple[str, str, list[dict[str, float]]]]:
    """Name, number of seeds where that says something, and numbers, of real pictures and of the generators at first."""
    for name in ("real", "before"):
        by_seed = {run["seed"]: run[name] for run in runs if name in run}
        # The real pictures are one set, the packaged start is one; untrained generators are as many as seeds.
        one = name == "real" or PROTOCOLS[protocol].from_start
        # Of one set the last, for an earlier release compared real pictures with others in the order of their files.
        rows = list(by_seed.values())[-1 if one else 0 :]
        if rows:
            yield name, "" if one else str(len(rows)), rows


def _shown(protocol: str, baseline: str, row: Row) -> str:
    """A row's name, with a mark on what ships."""
    ships = PROTOCOLS[protocol].shipped and (row.arm, row.factor) == ("both", SHIPPED[baseline])
    return f"**{row.label}** (ships)" if ships else row.label


def _over_plain(row: Row, legs: Mapping[Row, Legs], measure: str) -> list[str]:
    """The difference to plain training at the same learning rates, with the number of seeds where it is not the row's,
    and its p."""
    against = plain_of(row.arm)
    if against in (None, row.arm) or row.steps <= ARMS[row.arm].start:
        return ["", ""]
    over = differences(legs[row], legs.get(Row(against, 1.0, row.steps), {}), measure)
    fewer = f" ({len(over)} seed{'s' * (len(over) > 1)})" if over and len(over) < len(legs[row]) else ""
    return [_number(over, measure, sign="+") + fewer, _p(over)]


def _missing(protocol: str, baseline: str, legs: Mapping[Row, Legs]) -> str:
    """Which arms have no run, and what one would take."""
    there = {row.arm for row in legs}
    # alternatives.py trains DF-GAN alone; AttnGAN's plain arm has DAMSM itself.
    arms = [n for n, arm in ARMS.items() if not arm.is_recipe and (baseline == "dfgan" or arm.alternative is None)]
    missing = [name for name in arms if name not in there]
    # A run beside too many others says little of what a step takes: the dearest arm's median.
    seconds: dict[tuple[str, float], list[float]] = {}
    for row, by_seed in legs.items():
        timed = [leg["seconds_per_step"] for leg in by_seed.values() if "seconds_per_step" in leg]
        seconds.setdefault((row.arm, row.factor), []).extend(timed)
    seconds = {arm: timed for arm, timed in seconds.items() if timed}
    if not missing or not seconds:
        return ""
    steps = min(PROTOCOLS[protocol].equal_time, default=PROTOCOLS[protocol].legs[-1])
    minutes = steps * max(map(statistics.median, seconds.values())) / 60
    return f"Not run: {', '.join(missing)}; up to {minutes:.0f} minutes of one core each for {steps} steps of a seed."


def _contrasts(protocol: str, baseline: str, legs: Mapping[Row, Legs], brief: bool) -> str:
    """Both halves against plain training of the same steps and of the same time, and against every other arm: a table
    for each leg, with a row for each pair that shares a seed. Briefly: what ships alone, and no pair of `_briefly`."""
    tables, headline, shipped = [], PROTOCOLS[protocol].headline, PROTOCOLS[protocol].shipped
    for steps in PROTOCOLS[protocol].legs:
        lines = []
        for both in sorted(row for row in legs if row.arm == "both" and row.steps == steps):
            if brief and shipped and both.factor != SHIPPED[baseline]:
                continue
            pairs = [] if brief else [("plain at equal steps", Row("plain", 1.0, steps))]
            if longer := PROTOCOLS[protocol].equal_time.get(steps):
                pairs.append(("plain after about the same time", Row("plain", 1.0, longer)))
            pairs += [(_named(other, both), other) for other in _others(both, legs)]
            for what, other in pairs:
                over = {m: differences(legs[both], legs.get(other, {}), m) for m in (headline, "frechet_distance")}
                if over[headline]:
                    cells = [cell for m, values in over.items() for cell in (_number(values, m, sign="+"), _p(values))]
                    cells = [both.label, f"{what} ({other.steps} steps)", str(len(over[headline])), *cells]
                    lines.append(cells)
        head = [f"after {steps} steps", "minus", "seeds", MEASURES[headline][0], "p", "Frechet distance", "p"]
        tables += [markdown_table(head, lines, words=2)] if lines else []
    return "\n\n".join(tables)


def _others(both: Row, legs: Iterable[Row]) -> list[Row]:
    """The rows of the grid that both halves are compared with, at the same factor on their weights; the text half at
    equal gradient too."""

    def belongs(row: Row) -> bool:
        if row.arm in INSTEAD:
            return row.factor == both.factor or ARMS[row.arm].is_plain
        same = row.factor == both.factor or (row.arm == "vlm" and _has_equal_gradient(row, both))
        return same and not ARMS[row.arm].is_recipe

    rows = [row for row in legs if row.steps == both.steps and row.arm not in ("plain", "both") and belongs(row)]
    return sorted(rows, key=lambda row: (list(ARMS).index(row.arm), row.factor))


def _named(other: Row, both: Row) -> str:
    name = HALVES.get(other.arm, other.label)
    return f"{name}, at equal gradient" if other.arm in HALVES and _has_equal_gradient(other, both) else name


def _has_equal_gradient(text: Row, both: Row) -> bool:
    return math.isclose(text.factor, EQUAL_GRADIENT * both.factor)


def differences(
    legs: Mapping[int, Mapping[str, float]], others: Mapping[int, Mapping[str, float]], measure: str
) -> list[float]:
    """A measure's differences between legs of the same seed."""
    shared = [seed for seed in sorted(legs) if seed in others]
    return [legs[seed][measure] - others[seed][measure] for seed in shared if measure in legs[seed]]


def _p(over: Sequence[float]) -> str:
    """Nothing below three seeds: one degree of freedom makes any p."""
    p = paired_t_test(over) if len(over) > 2 else float("nan")
    return "" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "<.001"


def _number(values: Sequence[float], key: str, sign: str = "") -> str:
    if not values:
        return ""
    digits = MEASURES[key][1]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{spread}"
