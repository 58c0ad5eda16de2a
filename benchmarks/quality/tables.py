"""The tables of benchmarks/quality/run.py: mean and spread over seeds, and differences to plain paired by seed."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from benchmarks.cost import arms, cost, gpu_steps
from benchmarks.diagnosis import probe, spill
from benchmarks.markdown import markdown_table, mean_cell
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
TIME = "seconds_per_step"
# What an arm that was not run is found with: no seed of any measure.
NO_LEGS = pd.DataFrame(columns=[*MEASURES, TIME], dtype=float)


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
    the rest). A block without results says so.
    """
    kept = comparisons(results)

    def block(found: re.Match[str]) -> str:
        name = found[1]
        if name in TABLES:
            text = TABLES[name](results)
        else:
            *every, protocol, baseline = name.split()
            runs = kept[protocol, baseline]
            text = _comparison(protocol, baseline, runs, brief=not every) if runs else "Not run yet."
        return f"<!-- {name} -->\n{text}\n<!-- end -->"

    pairs = "|".join(f"{protocol} {baseline}" for protocol, baseline in kept)
    return re.sub(rf"<!-- ({'|'.join(TABLES)}|(?:all )?(?:{pairs})) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def blocks(results: Path) -> list[tuple[tuple[str, str], str]]:
    """(protocol, baseline) and the tables of each comparison, see `_comparison`."""
    return [(names, _comparison(*names, runs)) for names, runs in comparisons(results).items() if runs]


def summary(results: Path) -> str:
    """Both halves, as they ship, against plain: a row of each baseline, for the steps that the first command trains."""
    protocol, columns = "continued", ("attribute_accuracy", "frechet_distance")
    kept, steps, rows = comparisons(results), PROTOCOLS[protocol].legs[1], []
    for baseline in BASELINES:
        plain, both = _plain_and_both(legs_of(kept[protocol, baseline]), baseline, steps)
        if len(both):
            cells = [cell for m in columns for cell in (_change(plain, both, m), _p(differences(both, plain, m)))]
            rows.append([NAMES[baseline], f"{steps:,}", str(len(both)), *cells])
    titles = [title for m in columns for title in (f"{MEASURES[m][0]}, plain -> with the loss", "p")]
    return markdown_table(["baseline", "steps", "seeds", *titles], rows)


def headline(results: Path) -> str:
    """Both halves, as they ship, against plain: rows of each baseline, for all legs but the shortest."""
    columns = ("attribute_accuracy", "r_precision", "vlms", "frechet_distance")
    titles = [f"{MEASURES[m][0]}, plain -> with the loss" for m in columns]
    kept, rows = comparisons(results), []
    for baseline, protocol in itertools.product(BASELINES, (name for name, p in PROTOCOLS.items() if p.shipped)):
        legs, birds = legs_of(kept[protocol, baseline]), PROTOCOLS[protocol].birds["train"]
        for steps in PROTOCOLS[protocol].legs[1:]:
            plain, both = _plain_and_both(legs, baseline, steps)
            if len(both):
                over = differences(both, plain, "attribute_accuracy")
                gain = _number(over, "attribute_accuracy", sign="+")
                name = f"{NAMES[baseline]}, {birds:,} birds, {steps:,} steps"
                rows.append([name, str(len(both)), *(_change(plain, both, m) for m in columns), gain, _p(over)])
    return markdown_table(["baseline", "seeds", *titles, "gain in accuracy", "p"], rows)


def _plain_and_both(legs: Mapping[Row, pd.DataFrame], baseline: str, steps: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plain training and both halves as they ship, of the seeds that both have."""
    plain, both = Row("plain", 1.0, steps), Row("both", SHIPPED[baseline], steps)
    return legs.get(plain, NO_LEGS).align(legs.get(both, NO_LEGS), join="inner", axis=0)


def _change(plain: pd.DataFrame, both: pd.DataFrame, measure: str) -> str:
    return " -> ".join(_number(arm[measure], measure) for arm in (plain, both))


def terms(results: Path) -> str:
    """What each term adds to the other five: both halves minus both halves without it, from protocol `ablation`."""
    protocol, columns = "ablation", ("attribute_accuracy", "r_precision", "frechet_distance")
    legs, steps = legs_of(comparisons(results)[protocol, "dfgan"]), PROTOCOLS[protocol].legs[0]
    costs = _kept(arms)["costs"]
    lines = []
    for term in TERMS:
        both, without = (Row(arm, SHIPPED["dfgan"], steps) for arm in ("both", f"both minus {term}"))
        over = {m: differences(legs.get(both, NO_LEGS), legs.get(without, NO_LEGS), m) for m in columns}
        cells = [cell for m in columns for cell in (_number(over[m], m, sign="+"), _p(over[m]))]
        share = f"{costs['both'] - costs[without.arm]:+.2f}"
        lines.append([f"`{term}`", str(len(over["attribute_accuracy"])), *cells, share])
    titles = [title for m in columns for title in (MEASURES[m][0], "p")]
    return markdown_table(["term", "seeds", *titles, "plain steps of processor time"], lines)


def _kept(script: ModuleType) -> dict[str, Any]:
    return json.loads(script.RESULTS.read_text())


# Marker -> what makes its table from the folder of runs. The comparisons' markers are their own names, see `fill`.
TABLES: dict[str, Callable[[Path], str]] = {
    "summary": summary,
    "headline": headline,
    "terms": terms,
    "arms": lambda _: arms.table(_kept(arms)),
    "cost": lambda _: cost.table(_kept(cost)["configs"], tflops=20),
    "gpu": lambda _: gpu_steps.table(_kept(gpu_steps)),
    "probe": lambda _: probe.table(_kept(probe)),
    "spill": lambda _: spill.table([run for run in _kept(spill).values() if run["protocol"] == "continued"], seeds=3),
    "all spill": lambda _: spill.table(list(_kept(spill).values())),
}


def comparisons(results: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(protocol, baseline) -> the kept runs of that comparison."""
    runs, pairs = all_runs(results), itertools.product(PROTOCOLS, BASELINES)
    return {pair: [run for run in runs if (run["protocol"], run["baseline"]) == pair] for pair in pairs}


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


def legs_of(runs: Iterable[Mapping[str, Any]]) -> dict[Row, pd.DataFrame]:
    """Row -> seeds down, in order, and measures across; NaN where one was not taken. The time too, where a whole run
    was timed."""
    lines = [{"factor": 1.0} | run | leg for run in runs for leg in run["legs"]]
    legs = pd.DataFrame(lines, columns=[*Row._fields, "seed", *NO_LEGS]).set_index("seed").sort_index()
    return {Row(*row): own[[*NO_LEGS]] for row, own in legs.groupby([*Row._fields])}


def _comparison(protocol: str, baseline: str, runs: Sequence[dict[str, Any]], brief: bool = False) -> str:
    """Mean and standard deviation over seeds, and differences paired by seed. Briefly: of the measures those that the
    goal names, and diversity; of the pairs those of what ships."""
    legs = legs_of(runs)
    parts = [_means(protocol, baseline, runs, brief)]
    if PROTOCOLS[protocol].split == "test":
        parts += [_contrasts(protocol, baseline, legs, brief), _missing(protocol, baseline, legs)]
    return "\n\n".join(part for part in parts if part)


def _means(protocol: str, baseline: str, runs: Sequence[dict[str, Any]], brief: bool) -> str:
    """A row for each arm and leg; of the measures that the goal names, the difference to plain beside them."""
    legs, tested = legs_of(runs), (PROTOCOLS[protocol].headline, "frechet_distance")
    wanted = (*tested, "diversity") if brief else MEASURES
    taken = pd.concat(legs).notna().any()
    measures = [m for m in wanted if taken[m]]

    def values(rows: pd.DataFrame, over: Mapping[str, list[str]]) -> list[str]:
        return [cell for m in measures for cell in (_number(rows[m], m), *over.get(m, ()))]

    lines = []
    for name, count, rows in _before(protocol, runs):
        lines.append([name, "", count, *values(rows, {m: ["", ""] for m in tested}), ""])
    for row in sorted(legs, key=lambda row: (row.steps, list(ARMS).index(row.arm), row.factor)):
        over = {m: _over_plain(row, legs, m) for m in tested}
        cost = "" if legs[row][TIME].isna().all() else f"{legs[row][TIME].mean():.2f}"
        name = _shown(protocol, baseline, row)
        lines.append([name, str(row.steps), str(len(legs[row])), *values(legs[row], over), cost])
    titles = [title for m in measures for title in (MEASURES[m][0], *(("over plain", "p") if m in tested else ()))]
    head = ["arm", "steps", "seeds", *titles, "s a step"]
    columns = len(head) - brief
    return markdown_table(head[:columns], [line[:columns] for line in lines])


def _before(protocol: str, runs: Sequence[dict[str, Any]]) -> Iterable[tuple[str, str, pd.DataFrame]]:
    """Name, number of seeds where that says something, and numbers, of real pictures and of the generators at first."""
    for name in ("real", "before"):
        by_seed = {run["seed"]: run[name] for run in runs if name in run}
        # The real pictures are one set, the packaged start is one; untrained generators are as many as seeds.
        one = name == "real" or PROTOCOLS[protocol].from_start
        # Of one set the last, for an earlier release compared real pictures with others in the order of their files.
        rows = list(by_seed.values())[-1 if one else 0 :]
        if rows:
            yield name, "" if one else str(len(rows)), pd.DataFrame(rows, columns=NO_LEGS.columns)


def _shown(protocol: str, baseline: str, row: Row) -> str:
    """A row's name, with a mark on what ships."""
    ships = PROTOCOLS[protocol].shipped and (row.arm, row.factor) == ("both", SHIPPED[baseline])
    return f"**{row.label}** (ships)" if ships else row.label


def _over_plain(row: Row, legs: Mapping[Row, pd.DataFrame], measure: str) -> list[str]:
    """The difference to plain training at the same learning rates, with the number of seeds where it is not the row's,
    and its p."""
    against = plain_of(row.arm)
    if against in (None, row.arm) or row.steps <= ARMS[row.arm].start:
        return ["", ""]
    over = differences(legs[row], legs.get(Row(against, 1.0, row.steps), NO_LEGS), measure)
    fewer = f" ({len(over)} seed{'s' * (len(over) > 1)})" if 0 < len(over) < len(legs[row]) else ""
    return [_number(over, measure, sign="+") + fewer, _p(over)]


def _missing(protocol: str, baseline: str, legs: Mapping[Row, pd.DataFrame]) -> str:
    """Which arms have no run, and what one would take."""
    there = {row.arm for row in legs}
    # alternatives.py trains DF-GAN alone; AttnGAN's plain arm has DAMSM itself.
    arms = [n for n, arm in ARMS.items() if not arm.is_recipe and (baseline == "dfgan" or arm.alternative is None)]
    missing = [name for name in arms if name not in there]
    # A run beside too many others says little of what a step takes: the dearest arm's median.
    seconds = pd.concat(legs, names=Row._fields).groupby(["arm", "factor"])[TIME].median().max()
    if not missing or math.isnan(seconds):
        return ""
    steps = min(PROTOCOLS[protocol].equal_time, default=PROTOCOLS[protocol].legs[-1])
    minutes = steps * seconds / 60
    return f"Not run: {', '.join(missing)}; up to {minutes:.0f} minutes of one core each for {steps} steps of a seed."


def _contrasts(protocol: str, baseline: str, legs: Mapping[Row, pd.DataFrame], brief: bool) -> str:
    """Both halves against plain training of the same steps and of the same time, and against every other arm: a table
    for each leg, with a row for each pair that shares a seed. Briefly: what ships alone, and not against plain training
    of the same steps, which the rows of the arms hold."""
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
                over = {m: differences(legs[both], legs.get(other, NO_LEGS), m) for m in (headline, "frechet_distance")}
                if len(over[headline]):
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


def differences(legs: pd.DataFrame, others: pd.DataFrame, measure: str) -> pd.Series:
    """A measure's differences between legs of the same seed."""
    return (legs[measure] - others[measure]).dropna()


def _p(over: Sequence[float]) -> str:
    """Nothing below three seeds: one degree of freedom makes any p."""
    p = paired_t_test(over) if len(over) > 2 else float("nan")
    return "" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "<.001"


def _number(values: pd.Series, measure: str, sign: str = "") -> str:
    return mean_cell(values.dropna(), MEASURES[measure][1], sign)
