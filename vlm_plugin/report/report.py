"""One page about an evaluated run, or about several side by side: numbers, curves, pictures, attention, settings.

The page is a single file that loads nothing and runs no script, for any browser, a phone's too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from vlm_plugin.files import check_writable, write_text
from vlm_plugin.report.curves import curves_section
from vlm_plugin.report.pictures import attention_section, captions_section, extremes_section
from vlm_plugin.report.read import Run, check_comparable, counted, distinct_names, is_number, read_run
from vlm_plugin.report.results import results_section
from vlm_plugin.report.settings import settings_section

# Names of runs and captions are text: whatever is no markup of the templates is escaped.
TEMPLATES = Environment(
    loader=PackageLoader("vlm_plugin.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
# Each with the function that says what its template shows.
_SECTIONS = (
    ("results", "Results", results_section),
    ("curves", "Curves", curves_section),
    ("pictures", "Captions and pictures", captions_section),
    ("attention", "Attention", attention_section),
    ("extremes", "Best and worst", extremes_section),
    ("settings", "Settings and versions", settings_section),
)
# Control characters and lone surrogates, which file names may bring.
_NOT_IN_HTML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


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
    read = [read_run(folder, name) for folder, name in zip(folders, distinct_names(folders), strict=True)]
    for other in read[1:]:
        check_comparable(read[0], other)
    check_writable(out)
    write_text(render(read), out)
    return out


def render(runs: Sequence[Run]) -> str:
    """The page of runs that may be compared."""
    text = TEMPLATES.get_template("page.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side",
        introduction=list(_introduction(runs)),
        runs=runs,
        several=len(runs) > 1,
        sections=[(name, heading, shown(runs)) for name, heading, shown in _SECTIONS],
    )
    return _NOT_IN_HTML.sub("\N{REPLACEMENT CHARACTER}", text)


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
        f"Evaluated on {counted(facts.get('pictures'))} pictures"
        + (size if facts.get("image_size") else "")
        + f", split \N{LEFT DOUBLE QUOTATION MARK}{facts.get('split')}\N{RIGHT DOUBLE QUOTATION MARK} of "
        + f"{facts.get('data')}, seed {facts.get('seed')}."
    )
