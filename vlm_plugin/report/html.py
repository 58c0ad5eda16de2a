"""One self-contained HTML page without scripts: elements that escape what they hold, their style, pictures in place."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

from PIL import Image

from vlm_plugin.report.read import Run

# Control characters and lone surrogates, which file names may bring.
_NOT_IN_HTML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# They hold nothing. SVG's need the slash, HTML's may have it.
_EMPTY = {"img", "meta", "path", "line"}
# Okabe and Ito's colours, which colour-blind people can tell apart; the paler ones come last, for many runs.
_STYLE = """
:root {
  color-scheme: light dark;
  --back: #fbfbfa; --card: #ffffff; --text: #1c1f23; --quiet: #575e66; --rule: #dcdfe2; --faint: #eceef0;
  --link: #005a8f; --mark: #8a3c00; --mark-back: #fdf1e6;
  --s0: #0072b2; --s1: #d55e00; --s2: #00855f; --s3: #b3568a; --s4: #1c1f23; --s5: #a66f00; --s6: #2b85b8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171a; --card: #1b1f23; --text: #e8eaec; --quiet: #a7aeb5; --rule: #363c42; --faint: #262b30;
    --link: #7cc4f0; --mark: #f2b27a; --mark-back: #33261a;
    --s0: #56b4e9; --s1: #ee7a2e; --s2: #1fbf92; --s3: #d993ba; --s4: #e8eaec; --s5: #e69f00; --s6: #f0e442;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0 0 .4rem; font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; }
h2 { margin: 0 0 .35rem; font-size: 1.25rem; line-height: 1.3; font-weight: 650; }
h3 { margin: 0 0 .75rem; font-size: 1rem; line-height: 1.4; font-weight: 600; }
p { margin: 0 0 .75rem; max-width: 46rem; }
.quiet { color: var(--quiet); }
.small { font-size: .875rem; line-height: 1.5; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 0; padding: 0; list-style: none; }
nav a { display: inline-block; padding: .3rem 0; }
section { margin-top: 3rem; padding-top: 1.75rem; border-top: 1px solid var(--rule); }
.none { color: var(--quiet); font-style: italic; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem; margin: 1.25rem 0 1.5rem;
}
.fact { padding: .9rem 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.fact dt { font-size: .875rem; color: var(--quiet); }
.fact dd { margin: 0; font-size: .875rem; color: var(--quiet); font-variant-numeric: tabular-nums; }
.fact .run { display: block; margin-top: .45rem; }
.fact strong { display: block; font-size: 1.5rem; line-height: 1.3; font-weight: 600; color: var(--text); }
.fact .spread { min-width: 0; }
.beside { display: inline-block; margin-right: .75em; white-space: nowrap; }
.scroll { overflow-x: auto; max-width: 100%; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
caption {
  position: sticky; left: 0; padding: 0 0 .5rem; text-align: left; color: var(--quiet); font-size: .875rem;
}
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .5rem .9rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; }
th { font-weight: 600; }
thead th {
  min-width: 7.2rem; max-width: 12rem; vertical-align: bottom; line-height: 1.35;
  border-bottom: 2px solid var(--rule);
}
tbody th, .left, .settings th, .settings td { text-align: left; }
thead th:first-child { min-width: 0; text-align: left; }
tbody .group { padding-top: 1.2rem; color: var(--text); }
.member { padding-left: .9rem !important; font-weight: 500; }
.spread, .note { font-size: .8125rem; color: var(--quiet); font-weight: 400; }
.results td { white-space: nowrap; }
.scroll + h3 { margin-top: 1.75rem; }
.spread { display: inline-block; min-width: 4.4em; text-align: left; }
thead .note { display: block; }
.circular { display: block; font-size: .8125rem; font-weight: 600; color: var(--mark); }
th.by-trainer, td.by-trainer { background: var(--mark-back); }
dl.meanings {
  display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.25rem; margin: 0; max-width: 60rem;
}
dl.meanings dt { font-weight: 600; }
dl.meanings dd { margin: 0; }
.notes { margin: 1rem 0 0; padding: .75rem 1rem; border-left: 3px solid var(--mark); background: var(--mark-back); }
.notes ul { margin: 0; padding-left: 1.1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; margin: .75rem 0 1.25rem; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .5rem; font-size: .875rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; }
.chart { padding: .9rem 1rem .6rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.chart figcaption { margin-bottom: .4rem; font-size: .9375rem; font-weight: 600; line-height: 1.35; }
.chart figcaption .note { display: block; }
.chart .legend { margin: .2rem 0 .3rem; gap: .1rem 1rem; }
.chart > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--faint); stroke-width: 1; }
svg .axis { stroke: var(--quiet); stroke-width: 1; }
svg path.line { fill: none; stroke: currentColor; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { stroke-width: 1; opacity: .38; }
svg .smooth { stroke-width: 2; }
svg .floor { stroke-width: 1.6; stroke-dasharray: 5 4; stroke-linecap: butt !important; }
svg .marker { fill: var(--card); stroke: currentColor; stroke-width: 1.6; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: var(--faint); }
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.25rem;
  align-items: start;
}
.card { padding: 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.card figure + figure { margin-top: .8rem; }
.card figcaption { margin-bottom: .25rem; font-size: .8125rem; color: var(--quiet); }
.four { display: grid; grid-template-columns: repeat(4, 1fr); gap: .375rem; }
.four img { width: 100%; }
.words { margin-bottom: 2rem; font-size: .875rem; }
.words th, .words td { padding: .2rem .25rem; border: 0; text-align: left; }
.words thead th { min-width: 0; border: 0; font-weight: 600; white-space: nowrap; }
.words caption { font-size: 1rem; font-weight: 600; color: var(--text); max-width: min(60rem, calc(100vw - 3rem)); }
.words tbody th {
  position: sticky; left: 0; padding: .2rem .6rem .2rem 0; vertical-align: middle; background: var(--back);
  font-weight: 500;
}
.words img { width: 96px; max-width: none; }
.scored {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: 1rem; margin: 0 0 1.75rem;
}
.scored img { width: 100%; }
.scored figcaption { margin-top: .35rem; font-size: .8125rem; line-height: 1.4; color: var(--quiet); }
.scored strong { display: block; font-size: .9375rem; color: var(--text); font-variant-numeric: tabular-nums; }
details { margin-top: 1rem; }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
.settings { font-size: .875rem; }
.settings th, .settings td { padding: .3rem .9rem .3rem 0; font-weight: 400; }
.settings td { max-width: 26rem; overflow-wrap: anywhere; }
.settings thead th, .settings .differs th, .settings .differs td { font-weight: 650; }
.settings .differs { background: var(--mark-back); }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  section { margin-top: 2.25rem; padding-top: 1.25rem; }
  .facts { grid-template-columns: repeat(2, 1fr); gap: .6rem; }
  .fact { padding: .7rem .8rem; }
  .fact strong { font-size: 1.25rem; }
  th, td { padding: .45rem .6rem; }
  thead th { min-width: 6.4rem; }
  dl.meanings { grid-template-columns: 1fr; gap: 0; }
  dl.meanings dd { margin-bottom: .6rem; }
  .scored { grid-template-columns: repeat(2, 1fr); gap: .8rem; }
  .words img { width: 84px; }
}
"""
NO_VALUE = "\N{EN DASH}"
_WHY = {
    "log.jsonl": "not trained here, or not begun",
    "report.pt": "the evaluation kept no pictures",
    "options.json": "not trained here",
}


class Html(str):
    """Markup; any other string is text, and is escaped where it meets markup."""

    __slots__ = ()


def element(tag: str, /, *content: str | None, **attributes: object) -> Html:
    """An element.

    Args:
        tag: its name.
        content: text and markup; None is left out.
        attributes: `class_` is class, `aria_label` is aria-label; None and False are left out, True stands alone.
    """
    words = [tag]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(_valid(str(value)))}"')
    start = " ".join(words)
    return Html(f"<{start}/>" if tag in _EMPTY else f"<{start}>{join(content)}</{tag}>")


def join(content: Iterable[str | None], between: str = "") -> Html:
    """Text, escaped, and markup as one piece of markup."""
    parts = (part if isinstance(part, Html) else html.escape(_valid(part), quote=False) for part in content if part)
    return Html(between.join(parts))


def _valid(text: str) -> str:
    return _NOT_IN_HTML.sub("\N{REPLACEMENT CHARACTER}", text)


def picture(image: Image.Image, alt: str, **attributes: object) -> Html:
    """An RGB picture in the page itself, as PNG or JPEG, whichever is smaller."""
    encoded = {}
    for kind, options in (("png", {}), ("jpeg", {"quality": 85, "optimize": True})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    source = f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
    return element("img", src=source, alt=alt, width=image.width, height=image.height, **attributes)


def scroller(content: str, label: str) -> Html:
    """A box of its own that scrolls sideways, so that the page does not; the keyboard reaches it too."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def page(title: str, body: str) -> Html:
    """The whole document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        # Nothing is loaded and nothing is run, not even if a caption were to find a way through.
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        element("title", title),
        element("style", Html(_STYLE)),
    )
    return Html("<!DOCTYPE html>\n" + element("html", head, "\n", element("body", body), lang="en") + "\n")


def said_missing(run: Run, file: str, runs: Sequence[Run], what: str) -> Html:
    where = f"{run.name} has no {file}" if len(runs) > 1 else f"there is no {file}"
    return element("p", f"No {what}: {where} ({_WHY[file]}).", class_="none")


def said_empty(run: Run, runs: Sequence[Run], what: str, why: str) -> Html:
    of = f" of {run.name}" if len(runs) > 1 else ""
    return element("p", f"No {what}{of}: {why}.", class_="none")
