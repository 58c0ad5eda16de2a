"""One page about an evaluated run, or about several side by side: numbers, curves, pictures, attention, settings.

The page is a single file that loads nothing and runs no script, for any browser, a phone's too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vlm_plugin.files import check_writable
from vlm_plugin.report.curves import curves_section
from vlm_plugin.report.html import Html, element, join, page
from vlm_plugin.report.pictures import attention_section, captions_section, extremes_section
from vlm_plugin.report.read import Run, check_comparable, count_text, is_number, read_run, short_names
from vlm_plugin.report.results import results_section
from vlm_plugin.report.settings import settings_section


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page.

    Args:
        runs: folders that `vlm-plugin evaluate` was run on; several are compared.
        out: the file to write; its folder is made.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: a run has no evaluation.json.
        OSError: `out` cannot be written.
        ValueError: no run, one given twice, a file of it is damaged, or runs that were evaluated in different ways; the
            message names the file, or each difference.
    """
    folders, out = [Path(run) for run in runs], Path(out)
    if not folders:
        raise ValueError("runs: expected at least one run's folder, got none")
    if twice := [str(f) for f, n in Counter(folder.resolve() for folder in folders).items() if n > 1]:
        raise ValueError(f"runs: expected different folders, got {', '.join(twice)} more than once")
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    read = [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]
    for other in read[1:]:
        check_comparable(read[0], other)
    check_writable(out)
    text = render(read)
    unfinished = out.with_name(out.name + ".part")
    # Names of runs and pictures may be no valid UTF-8.
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(unfinished, out)
    return out


def render(runs: Sequence[Run]) -> Html:
    """The page of runs that may be compared."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    sections: list[tuple[str, str, Callable[[Sequence[Run]], Html]]] = [
        ("results", "Results", results_section),
        ("curves", "Curves", curves_section),
        ("pictures", "Captions and pictures", captions_section),
        ("attention", "Attention", attention_section),
        ("extremes", "Best and worst", extremes_section),
        ("settings", "Settings and versions", settings_section),
    ]
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    header = element(
        "header",
        element("h1", title),
        *(element("p", line, class_="quiet") for line in _introduction(runs)),
        element("nav", element("ul", *links), aria_label="Sections"),
    )
    body = [
        element(
            "section", element("h2", heading, id=f"{name}-title"), make(runs), id=name, aria_labelledby=f"{name}-title"
        )
        for name, heading, make in sections
    ]
    return page(f"Report: {title}", join([header, element("main", *body)], "\n"))


def _introduction(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        facts = run.options or {}
        words = [str(facts["baseline"])] if facts.get("baseline") else []
        if run.options is not None:
            words.append("with the dual loss" if facts.get("vlm") else "without the dual loss")
        if is_number(facts.get("steps")):
            words.append(f"{facts['steps']:,} steps")
        if is_number(facts.get("seed")):
            words.append(f"trained with seed {facts['seed']}")
        if words:
            yield (f"{run.name}: " if len(runs) > 1 else "") + ", ".join(words) + "."
    facts = runs[0].evaluation["manifest"]
    size = f" of {facts['image_size']} \N{MULTIPLICATION SIGN} {facts['image_size']} pixels"
    yield (
        f"Evaluated on {count_text(facts.get('pictures'))} pictures"
        + (size if facts.get("image_size") else "")
        + f", split \N{LEFT DOUBLE QUOTATION MARK}{facts.get('split')}\N{RIGHT DOUBLE QUOTATION MARK} of "
        + f"{facts.get('data')}, seed {facts.get('seed')}."
    )
