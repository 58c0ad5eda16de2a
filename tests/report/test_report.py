"""The page about runs: what it says, that it stands alone, what it refuses, and how a browser sees it."""

from __future__ import annotations

import argparse
import base64
import copy
import io
import json
import math
import re
import subprocess
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from vlm_plugin.cli import report as report_module
from vlm_plugin.cli.report import add_arguments
from vlm_plugin.loss import TERMS
from vlm_plugin.report import charts as charts_module
from vlm_plugin.report.charts import Curve, chart, downsampled, smoothed, ticks
from vlm_plugin.report.light import lit
from vlm_plugin.report.pictures import embedded
from vlm_plugin.report.read import MATTERS, asides, comparable, warnings
from vlm_plugin.report.report import TEMPLATES, write_report
from vlm_plugin.report.results import formatted
from vlm_plugin.report.settings import flattened

EVALUATOR, JUDGE, TRAINED = "3fa81c22b90d4e17", "1f2e3d4c5b6a7988", "0b7d5c9a11e2f384"
MANIFEST = {
    "data": "birds", "layout": "originals", "split": "test", "pictures": 1000, "image_size": 32,
    "resize": "bilinear, antialiased (PIL)", "truncation": None, "ema": True, "seed": 0, "candidates": 100, "folds": 10,
    "evaluator": {"name": "birds.second.vlm.pt", "fingerprint": EVALUATOR}, "trained_with": TRAINED, "judge": JUDGE,
    "inception": None, "data_digest": "90ab" * 4, "device": "cpu",
    "versions": {"vlm_plugin": "1.2.0", "python": "3.12.4", "torch": "2.15.0"},
}  # fmt: skip


def column(title: str, by: str, better: str = "higher", circular: bool = False, high: float | None = 1) -> dict:
    what = f"what {title} of {by} is"
    return {"title": title, "by": by, "better": better, "bounds": [0, high], "circular": circular, "what": what}


COLUMNS = {
    "attribute_accuracy": column("attribute accuracy", f"judge {JUDGE}"),
    "vlms": column("VLMS", f"evaluator birds.second.vlm.pt {EVALUATOR}"),
    "vlms_training": column("VLMS", f"matcher birds.vlm.pt {TRAINED}", circular=True),
    "frechet_distance": column("Frechet distance (judge)", f"judge {JUDGE}", "lower", high=None),
}
ROWS = {
    "real": {"attribute_accuracy": (1.0, None), "vlms": (0.62749, 0.03), "frechet_distance": (361.519, None)},
    "before": {"attribute_accuracy": (0.61, 0.02), "vlms": (0.5, 0.1234), "vlms_training": (0.584, 0.04)},
    "after": {"attribute_accuracy": (0.6831, 0.03), "vlms": (0.47, 0.02), "vlms_training": (0.646, 0.04),
              "frechet_distance": (12345.6, 123.4)},
}  # fmt: skip
CAPTIONS = ["this bird has <script>alert('red')</script> wings & a \"crown\".", "ein Vogel, größer als 小鳥"]
WORDS = ["a", "red", "<b>bird</b>"]


def evaluation(**changes: object) -> dict:
    rows = [
        {"name": name, "values": {c: {"value": v, "spread": s} for c, (v, s) in values.items()}}
        for name, values in ROWS.items()
    ]
    return {
        "manifest": copy.deepcopy(MANIFEST) | changes, "columns": copy.deepcopy(COLUMNS), "rows": rows,
        "notes": ["no Inception weights: pass --inception PATH"],
    }  # fmt: skip


def wave(*shape: int, seed: float = 0.0) -> torch.Tensor:
    values = (torch.arange(math.prod(shape)) * 0.07 + seed).sin().reshape(shape)
    return (values * 127.5 + 127.5).to(torch.uint8)


def scored(scores: list[float], size: int) -> dict:
    captions = [f"caption {n}" for n in range(len(scores))]
    return {"captions": captions, "pictures": wave(len(scores), 3, size, size), "scores": scores}


def shown(size: int = 32, captions: Sequence[str] = CAPTIONS, words: Sequence[str] = WORDS, parts: int = 2) -> dict:
    count = len(captions)
    return {
        "captions": list(captions),
        "pictures": {
            "real": wave(count, 1, 3, size, size),
            "before": wave(count, 4, 3, size, size, seed=1),
            "after": wave(count, 4, 3, size, size, seed=2),
        },
        "best": scored([0.9 - n / 50 for n in range(parts)], size),
        "worst": scored([0.1 + n / 50 for n in range(parts)], size),
        "attention": [
            {
                "caption": caption, "words": list(words),
                "real": wave(3, size, size), "fake": wave(3, size, size, seed=1),
                "real_maps": torch.rand(len(words), 4, 4), "fake_maps": torch.rand(len(words), 4, 4),
            }
            for caption in captions[:3]
        ],
    }  # fmt: skip


def log_lines(count: int = 40, dual: bool = True) -> str:
    rows = []
    for n in range(count):
        row = {"step": 20 * n, "discriminator": 2 + math.sin(n), "generator": -math.cos(n), "penalty": 0.1}
        if dual:
            row |= {term: 5 - k / 4 + math.exp(-n / 9) + 0.1 * math.sin(9 * n) for k, term in enumerate(TERMS)}
            row |= {f"floor_{term}": 2 - k / 4 for k, term in enumerate(TERMS)}
            row |= {"lambda_vvm": min(0.1, n / 100), "lambda_vlm": min(0.4, n / 50)}
        rows.append(json.dumps(row))
    return "\n".join(rows) + "\n"


OPTIONS = {
    "baseline": "dfgan", "settings": {"nf": 16, "adam_betas": [0.0, 0.9], "vlm": {"lambda_vlm": 0.4, "terms": None}},
    "data": None, "vlm": "packaged", "steps": 800, "seed": 0, "versions": {"torch": "2.15.0"},
}  # fmt: skip


def make_run(folder: Path, *leave_out: str, **changes: object) -> Path:
    """A run's folder with all its files but those left out; changes are the manifest's."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "evaluation.json": json.dumps(evaluation(**changes)),
        "log.jsonl": log_lines(),
        "options.json": json.dumps(OPTIONS),
    }
    for name, text in texts.items():
        if name not in leave_out:
            (folder / name).write_text(text, encoding="utf-8")
    if "report.pt" not in leave_out:
        torch.save(shown(), folder / "report.pt")
    return folder


def change(path: Path, how: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    how(content)
    path.write_text(json.dumps(content), encoding="utf-8")


class Node(NamedTuple):
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str]

    def all(self, tag: str, class_: str | None = None) -> list[Node]:
        """Every such element inside, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag and (class_ is None or class_ in (child.attributes.get("class") or "").split()):
                    found.append(child)
                found += child.all(tag, class_)
        return found

    def text(self) -> str:
        """What is read, with white space as a browser has it."""
        return " ".join("".join(c if isinstance(c, str) else f" {c.text()} " for c in self.children).split())


class Reader(HTMLParser):
    """Builds a tree, and does not forgive what browsers do."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {}, [])
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {attrs}"
        node = Node(tag, dict(attrs), [])
        self.open[-1].children.append(node)
        self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        # HTML has no such tags; only its void elements and SVG's may be written so.
        assert tag in ("meta", "img", "path", "line"), tag
        self.open[-1].children.append(Node(tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        # Lines of the templates end between elements, too.
        if data.strip():
            self.open[-1].children.append(data)


def tree(path: Path) -> Node:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def report_of(*runs: Path) -> Node:
    return tree(write_report(runs, runs[0].parent / "report.html"))


def section(root: Node, name: str) -> Node:
    (found,) = (node for node in root.all("section") if node.attributes["id"] == name)
    return found


def lines_of(table: Node) -> list[list[str]]:
    return [[cell.text() for cell in row.children] for body in table.all("tbody") for row in body.all("tr")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "00000-dfgan-vlm")


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> list[Path]:
    """A run with the dual loss and a plain one, for which no column is circular."""
    plain = make_run(tmp_path / "00001-dfgan", device="cuda")
    change(plain / "evaluation.json", lambda e: e["columns"]["vlms_training"].update(circular=False))
    change(plain / "evaluation.json", lambda e: e["manifest"].update(trained_with=None))
    change(plain / "options.json", lambda o: (o.update(vlm=None), o["settings"]["vlm"].update(lambda_vlm=0.0)))
    (plain / "log.jsonl").write_text(log_lines(50, dual=False), encoding="utf-8")
    return [run, plain]


# ----------------------------------------------------------------------------------------------------------- the page


def all_nodes(node: Node) -> list[Node]:
    return [node, *(inner for child in node.children if isinstance(child, Node) for inner in all_nodes(child))]


@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_the_page_is_whole_and_stands_alone(pair: list[Path], several: bool) -> None:
    out = write_report(pair if several else pair[:1], pair[0].parent / "deep" / "er" / "page.html")
    text, root = out.read_text(encoding="utf-8"), tree(out)
    assert text.startswith("<!DOCTYPE html>")
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "base", "form"} & {node.tag for node in all_nodes(root)}
    ids = [node.attributes["id"] for node in all_nodes(root) if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in all_nodes(root):
        for name, value in node.attributes.items():
            assert not name.startswith("on"), node
            if name == "src":
                assert value.startswith("data:image/")
            if name == "href":
                assert value[0] == "#"
                assert value[1:] in ids
            if name == "aria-labelledby":
                assert value in ids
    assert not list(out.parent.glob("*.part"))


@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_everything_has_a_name_for_those_who_cannot_see_it(pair: list[Path], several: bool) -> None:
    root = report_of(*(pair if several else pair[:1]))
    (html,) = root.all("html")
    assert html.attributes["lang"] == "en"
    assert any(meta.attributes.get("name") == "viewport" for meta in root.all("meta"))
    assert len(root.all("h1")) == len(root.all("title")) == len(root.all("main")) == 1
    assert all(image.attributes["alt"].strip() for image in root.all("img"))
    for svg in root.all("svg"):
        assert svg.attributes.get("aria-hidden") == "true" or svg.attributes["aria-label"].strip()
    for table in root.all("table"):
        assert table.all("caption")[0].text()
        assert all(cell.attributes["scope"] in ("col", "row", "rowgroup") for cell in table.all("th"))
        widths = {sum(int(cell.attributes.get("colspan", 1)) for cell in row.children) for row in table.all("tr")}
        assert len(widths) == 1
    # Each table has a box of its own to scroll in, which the keyboard reaches.
    assert len(root.all("div", "scroll")) == len(root.all("table"))
    assert all(box.attributes["tabindex"] == "0" and box.attributes["aria-label"] for box in root.all("div", "scroll"))
    assert [len(part.all("h2")) for part in root.all("section")] == [1] * 6
    assert len(root.all("figcaption")) == len(root.all("figure"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_both_schemes(run: Path) -> None:
    """WCAG's AA: 4.5 for text, 3 for curves."""
    (style,) = report_of(run).all("style")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.text().split("@media")[:2])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for back in ("back", "card"):
            for name in ("text", "quiet", "link", "mark"):
                assert contrast(colours[name], colours[back]) >= 4.5, (name, back)
        for name in ("text", "quiet", "mark"):
            assert contrast(colours[name], colours["mark-back"]) >= 4.5, name
        for number in range(7):
            assert contrast(colours[f"s{number}"], colours["card"]) >= 3, number
    assert luminance(light["back"]) > 0.8 > 0.05 > luminance(dark["back"])


def test_what_captions_and_names_say_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<i>run & co<i>")
    change(run / "evaluation.json", lambda e: e.update(notes=["<script>note</script>"]))
    change(run / "evaluation.json", lambda e: e["rows"][1].update(name="<u>row</u>"))
    change(run / "options.json", lambda o: o.update({"<s>key</s>": "<script>value</script>\ud800\0"}))
    out = write_report([run], tmp_path / "page.html")
    text, root = out.read_text(encoding="utf-8"), tree(out)
    assert not root.all("script")
    assert not any(root.all(tag) for tag in "iusb")
    for escaped in ("&lt;script&gt;alert", "&lt;script&gt;note", "&lt;script&gt;value", "&lt;s&gt;key"):
        assert escaped in text
    assert root.all("h1")[0].text() == "<i>run & co<i>"
    headings = [heading.text() for heading in section(root, "pictures").all("h3")]
    assert headings == CAPTIONS
    assert any(image.attributes["alt"] == f"real: {CAPTIONS[0]}" for image in root.all("img"))


def test_templates_escape_and_refuse_what_they_were_not_given() -> None:
    assert TEMPLATES.from_string("{{ a }}<i>").render(a="<i>&") == "&lt;i&gt;&amp;<i>"
    with pytest.raises(UndefinedError, match="'b' is undefined"):
        TEMPLATES.from_string("{{ a }}{{ b }}").render(a=1)


def test_one_page_is_below_two_megabytes(tmp_path: Path) -> None:
    """Pictures of the largest size that is kept, long captions, a long log."""
    run = make_run(tmp_path / "run", "report.pt", "log.jsonl")
    captions = [f"{'a bird with a long caption ' * 3}{n}" for n in range(8)]
    # As much detail as a photograph has: what its neighbours do not tell is little.
    content = shown(160, captions, [f"word{n}" for n in range(18)], 8)
    noise = torch.randint(0, 12, (160, 160), dtype=torch.uint8)
    base = torch.arange(160, dtype=torch.uint8)[None, :] // 2 + torch.arange(160, dtype=torch.uint8)[:, None] // 3
    for pictures in content["pictures"].values():
        pictures[:] = base + noise
    for part in content["attention"]:
        part["real"][:] = part["fake"][:] = base + noise
    for name in ("best", "worst"):
        content[name]["pictures"][:] = base + noise
    torch.save(content, run / "report.pt")
    (run / "log.jsonl").write_text(log_lines(3000), encoding="utf-8")
    assert write_report([run], tmp_path / "page.html").stat().st_size < 2_000_000


# ------------------------------------------------------------------------------------------------------------ results


def test_the_table_has_every_row_with_spreads(run: Path) -> None:
    table = section(report_of(run), "results").all("table")[0]
    assert lines_of(table) == [
        ["real", "1.000", "0.627 ± 0.030", "–", "361.5"],
        ["before", "0.610 ± 0.020", "0.500 ± 0.123", "0.584 ± 0.040", "–"],
        ["after", "0.683 ± 0.030", "0.470 ± 0.020", "0.646 ± 0.040", "12346 ± 123"],
    ]
    assert "standard deviation over 10 folds" in table.all("caption")[0].text()


@pytest.mark.parametrize(
    ("value", "better", "text"),
    [
        (0.41, "higher", "0.410"), (-0.0004, "higher", "-0.000"), (1012.3, "lower", "1012"),
        (0.012345, "lower", "0.01235"), (9999.6, "lower", "10000"),
        (123456.7, "lower", "123457"), (math.nan, "lower", "nan"), (math.inf, "lower", "inf"),
        (1e12, "lower", "1e+12"),
    ],
)  # fmt: skip
def test_numbers(value: float, better: str, text: str) -> None:
    assert formatted(value, better) == text


def test_values_that_are_not_finite_are_shown_as_such(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e["rows"][2]["values"]["vlms"].update(value=math.nan, spread=math.inf))
    assert lines_of(section(report_of(run), "results").all("table")[0])[2][2] == "nan ± inf"


def test_circular_columns_say_so_in_words(run: Path) -> None:
    results = section(report_of(run), "results")
    heads = [head.text() for head in results.all("thead")[0].all("th")]
    assert heads == [
        "pictures",
        "attribute accuracy higher is better",
        "VLMS higher is better",
        "VLMS higher is better circular: this matcher trained the generator",
        "Frechet distance (judge) lower is better",
    ]
    # What proves nothing is not in the headline.
    facts = [(fact.all("dt")[0].text(), fact.all("strong")[0].text()) for fact in results.all("div", "fact")]
    assert facts == [
        ("attribute accuracy", "0.683 ± 0.030"), ("VLMS", "0.470 ± 0.020"), ("Frechet distance (judge)", "12346 ± 123"),
    ]  # fmt: skip
    assert "real 0.627 before 0.500" in results.all("div", "fact")[1].text()


def test_every_column_is_explained(run: Path) -> None:
    (meanings,) = section(report_of(run), "results").all("dl", "meanings")
    assert [term.text() for term in meanings.all("dt")] == [c["title"] for c in COLUMNS.values()]
    texts = [meaning.text() for meaning in meanings.all("dd")]
    for text, facts in zip(texts, COLUMNS.values(), strict=True):
        assert facts["what"] in text
        assert f"by {facts['by']}" in text
        assert f"{facts['better']} is better" in text
        assert ("from 0 to 1" in text) == (facts["bounds"] == [0, 1])
        assert ("circular: this matcher trained the generator" in text) == facts["circular"]
    assert "from 0 up" in texts[3]


def test_equal_titles_are_told_apart(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e["columns"]["vlms_training"].update(circular=False))
    heads = [head.text() for head in section(report_of(run), "results").all("thead")[0].all("th")]
    assert heads[2].startswith(f"VLMS by evaluator birds.second.vlm.pt {EVALUATOR}")
    assert heads[3].startswith(f"VLMS by matcher birds.vlm.pt {TRAINED}")


def test_the_introduction_and_the_notes(run: Path) -> None:
    root = report_of(run)
    text = root.all("header")[0].text()
    assert "dfgan, with the dual loss, 800 steps, trained with seed 0." in text
    assert "Evaluated on 1,000 pictures of 32 × 32 pixels, split “test” of birds, seed 0." in text
    assert "no Inception weights" in section(root, "results").all("div", "notes")[0].text()
    change(run / "evaluation.json", lambda e: e.update(notes=[]))
    assert not section(report_of(run), "results").all("div", "notes")


# ------------------------------------------------------------------------------------------------------- several runs


def test_runs_stand_side_by_side(pair: list[Path]) -> None:
    root = report_of(*pair)
    assert root.all("h1")[0].text() == "2 runs side by side"
    table = section(root, "results").all("table")[0]
    names = [line[0] for line in lines_of(table)]
    assert names == ["00000-dfgan-vlm", *ROWS, "00001-dfgan", *ROWS]
    head = table.all("thead")[0].text()
    assert "circular for 00000-dfgan-vlm: this matcher trained the generator" in head
    # Marked where it is circular alone.
    assert [len(body.all("td", "by-trainer")) for body in table.all("tbody")] == [3, 0]
    fact = section(root, "results").all("div", "fact")[0]
    assert [value.text() for value in fact.all("strong")] == ["0.683 ± 0.030"] * 2
    assert "00001-dfgan, after" in fact.text()
    labels = [
        figure.all("figcaption")[0].text() for figure in section(root, "pictures").all("article")[0].all("figure")
    ]
    assert labels == ["real", *(f"{r.name}, {m}" for r in pair for m in ("before", "after"))]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run") for place in ("a", "b")] + [make_run(tmp_path / "other")]
    names = [line[0] for line in lines_of(section(report_of(*runs), "results").all("table")[0])]
    assert names[::4] == ["a/run", "b/run", "other"]


DIFFERENT = {
    "data_digest": "ffff" * 4, "split": "validation", "pictures": 999, "image_size": 64, "resize": "nearest",
    "truncation": 0.8, "seed": 1, "candidates": 10, "folds": 5, "judge": None, "inception": "ab" * 32,
    "evaluator": {"name": "birds.second.vlm.pt", "fingerprint": "0" * 16},
}  # fmt: skip


@pytest.mark.parametrize("name", MATTERS)
def test_what_was_evaluated_differently_is_not_compared(run: Path, tmp_path: Path, name: str) -> None:
    other = make_run(tmp_path / "other", **{name: DIFFERENT[name]})
    with pytest.raises(ValueError, match=f"differences: {name}: ") as refused:
        write_report([run, other], tmp_path / "page.html")
    assert str(other) in str(refused.value)
    assert str(run) in str(refused.value)
    assert not (tmp_path / "page.html").exists()


def test_every_difference_is_named(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", **DIFFERENT)
    with pytest.raises(
        ValueError, match=r"data_digest: .*; split: test and validation; pictures: 1000 and 999; .*judge: "
    ):
        write_report([run, run.parent / "other"], tmp_path / "page.html")
    third = make_run(tmp_path / "third")
    with pytest.raises(ValueError, match=re.escape(str(other))):
        write_report([run, third, other], tmp_path / "page.html")


def test_what_may_differ() -> None:
    assert comparable(MANIFEST, MANIFEST) == warnings(MANIFEST, MANIFEST) == asides(MANIFEST, MANIFEST) == []
    versions = {"vlm_plugin": "1.3.0", "torch": "2.14.1", "nltk": "3.9"}
    other = copy.deepcopy(MANIFEST) | {"device": "cuda", "ema": False, "trained_with": None, "versions": versions}
    other["evaluator"]["name"] = "renamed.vlm.pt"
    assert comparable(MANIFEST, other) == []
    assert warnings(MANIFEST, other) == ["ema: True and False", "torch: 2.15.0 and 2.14.1"]
    assert asides(MANIFEST, other) == [
        "device: cpu and cuda", "vlm_plugin: 1.2.0 and 1.3.0", "python: 3.12.4 and none", "nltk: none and 3.9",
    ]  # fmt: skip
    # As long as nothing is known of one.
    assert comparable({}, dict.fromkeys(MATTERS)) == []
    assert comparable({}, {"seed": 0}) == ["seed: none and 0"]
    # An earlier release does not say how captions were read.
    read = MANIFEST | {"evaluator_reads": "0" * 16}
    assert comparable(MANIFEST, read) == comparable(read, MANIFEST) == []
    assert comparable(read, read | {"evaluator_reads": "1" * 16}) == [f"evaluator_reads: {'0' * 16} and {'1' * 16}"]
    named, fingerprint = MANIFEST["evaluator"], DIFFERENT["evaluator"]["fingerprint"]
    assert comparable(MANIFEST, MANIFEST | {"evaluator": named | {"fingerprint": fingerprint}}) == [
        f"evaluator: birds.second.vlm.pt ({EVALUATOR}) and birds.second.vlm.pt ({fingerprint})"
    ]


def test_harmless_differences_are_reported(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", device="cuda", versions=MANIFEST["versions"] | {"torch": "2.14.1"})
    root = report_of(run, other)
    assert "00000-dfgan-vlm and other differ in torch: 2.15.0 and 2.14.1" in section(root, "results").text()
    text = section(root, "settings").text()
    assert "Differences that do not matter: 00000-dfgan-vlm and other differ in device: cpu and cuda." in text


# ------------------------------------------------------------------------------------------------------------- curves


def drawn(curves: Sequence[Curve]) -> str:
    """A chart as the page has it."""
    return TEMPLATES.get_template("charts.html.j2").module.chart(chart(curves, "name"))


def coordinates(path: Node) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.attributes["d"])]


def test_a_chart_for_every_term_with_its_floor(run: Path) -> None:
    figures = section(report_of(run), "curves").all("figure")
    titles = [figure.all("figcaption")[0].children[0] for figure in figures]
    assert titles == [*TERMS, "discriminator", "generator", "penalty", "weights"]
    for title, figure in zip(titles, figures, strict=True):
        assert len(figure.all("path", "floor")) == (title in TERMS)
        assert len(figure.all("path", "smooth")) == (1 if title != "weights" else 2 + 2)
        label = figure.all("svg")[-1].attributes["aria-label"]
        assert label.startswith(f"{title} by step. ")
    assert "floor 2 at the end" in figures[0].all("svg")[0].attributes["aria-label"]
    assert [item.text() for item in figures[-1].all("li")] == ["lambda_vvm", "lambda_vlm"]


def test_curves_of_several_runs_differ_in_colour_and_marker(pair: list[Path]) -> None:
    curves = section(report_of(*pair), "curves")
    (figure,) = (f for f in curves.all("figure") if f.all("figcaption")[0].text() == "discriminator")
    groups = [group for group in figure.all("g") if group.all("path", "smooth")]
    assert [group.attributes["class"] for group in groups] == ["s0", "s1"]
    markers = [{marker.attributes["d"] for marker in group.all("path", "marker")} for group in groups]
    assert [len(shapes) for shapes in markers] == [1, 1]
    assert markers[0] != markers[1]
    legend = curves.all("ul", "legend")[0]
    assert [item.text() for item in legend.all("li")] == [run.name for run in pair]
    assert [item.all("path", "marker")[0].attributes["d"] for item in legend.all("li")] == [m.pop() for m in markers]
    # A term that one run lacks is drawn for the other, in that one's colour.
    assert [group.attributes["class"] for group in curves.all("figure")[0].all("g") if group.all("path")] == ["s0"]


def test_a_chart_shows_the_values() -> None:
    """Straight lines have their ends where they belong; what is not finite leaves a gap."""
    values = [(100.0 + n, 10.0 + n) for n in range(21)]
    reader = Reader()
    reader.feed(drawn([Curve("run", 0, values, [(100.0, 5.0), (120.0, 5.0)])]))
    (line,), (floor,) = reader.root.all("path", "smooth"), reader.root.all("path", "floor")
    points, below = coordinates(line), coordinates(floor)
    labels = {}
    for text in reader.root.all("text"):
        labels.setdefault(text.attributes["text-anchor"] == "end" and text.attributes["x"] == "39", []).append(text)
    marks = [(float(text.text()), float(text.attributes["y"]) - 3.8) for text in labels[True]]
    (low, low_y), (high, high_y) = marks[0], marks[-1]
    # The frame: its lowest tick at the bottom, its highest at the top.
    assert (low, low_y, high, high_y) == (0, pytest.approx(166), 30, pytest.approx(8))

    def y_of(value: float) -> float:
        return low_y + (value - low) / (high - low) * (high_y - low_y)

    for (_, value), (_, y) in zip(values, points, strict=True):
        assert y == pytest.approx(y_of(value), abs=0.11)
    assert [y for _, y in below] == pytest.approx([y_of(5.0)] * 2, abs=0.11)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert (points[0][0], points[-1][0]) == (below[0][0], below[-1][0]) == (46, 328)
    broken = [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0), (3.0, 2.0), (4.0, math.inf), (5.0, 1.0)]
    reader = Reader()
    reader.feed(drawn([Curve("run", 0, broken)]))
    (path,) = reader.root.all("path", "smooth")
    assert [len(part.split("L")) for part in path.attributes["d"].split("M")[1:]] == [1, 2, 1]
    assert path.attributes["d"].count("h0") == 2
    assert "nan" not in path.attributes["d"]


@pytest.mark.parametrize(
    "values", [[(0, 3.0)], [(0, 0.0), (20, 0.0)], [(0, math.nan)], [(0, 1e-30), (1, 2e-30)], [(5, -1e9), (6, 1e9)]]
)
def test_charts_of_odd_values(values: list[tuple[float, float]]) -> None:
    svg = drawn([Curve("one", 0, values), Curve("two", 1, values)])
    Reader().feed(svg)
    numbers = re.findall(r'(?:d|x1|y1|y)="([^"]*)"', svg)
    assert not any("nan" in number or "inf" in number for number in numbers)


def test_long_logs_are_thinned_out_and_keep_their_spikes() -> None:
    points = [(n, math.sin(n / 300)) for n in range(5000)]
    points[1234], points[4321] = (1234, 50.0), (4321, -50.0)
    few = downsampled(points)
    assert len(few) <= 200
    assert {points[0], points[1234], points[4321], points[-1]} <= set(few)
    assert few == sorted(few)
    assert downsampled(points[:200]) == points[:200]
    assert len(downsampled(points[:201])) <= 200
    assert len(downsampled([(n, math.nan) for n in range(999)])) <= 200


def test_a_chart_has_at_most_200_points_a_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "log.jsonl").write_text(log_lines(2000), encoding="utf-8")
    curves = section(report_of(run), "curves")
    for kind in ("raw", "smooth", "floor"):
        lines = [line for line in curves.all("path", kind) if line.attributes["d"] != "M2 8h32"]
        assert lines
        assert all(2 < len(coordinates(line)) <= 200 for line in lines)


def test_smoothing() -> None:
    """A slope stays a slope, noise goes, and what is not finite neither spreads nor vanishes."""
    slope = [(float(n), 3.0 * n - 7) for n in range(300)]
    assert [y for _, y in smoothed(slope)] == pytest.approx([y for _, y in slope], abs=1e-6)
    noisy = [(x, y + (1.0 if i % 2 else -1.0)) for i, (x, y) in enumerate(slope)]
    assert max(abs(a[1] - b[1]) for a, b in zip(smoothed(noisy), slope, strict=True)) < 0.4
    broken = [(x, math.nan if x == 100 else y) for x, y in slope]
    result = smoothed(broken)
    assert math.isnan(result[100][1])
    assert [y for i, (_, y) in enumerate(result) if i != 100] == pytest.approx(
        [y for i, (_, y) in enumerate(slope) if i != 100], abs=1e-6
    )
    assert smoothed(noisy[:29]) == noisy[:29]
    assert smoothed([]) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]), (0, 0.4, [0, 0.1, 0.2, 0.3, 0.4]), (0, 780, [0, 200, 400, 600, 800]),
        (-3, 7, [-5, 0, 5, 10]),
    ],
)  # fmt: skip
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_steps_are_whole() -> None:
    assert ticks(0, 2, whole=True) == [0, 1, 2]
    assert [charts_module.number(value) for value in (0, 0.25, -1.5, 1000, 20000, 12345, 3e6)] == [
        "0", "0.25", "−1.5", "1000", "20k", "12345", "3e+06",
    ]  # fmt: skip


def test_half_a_line_and_lines_without_a_step_are_left_out(run: Path) -> None:
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"generator": 9e9}\n[1, 2]\n{"step": "x", "generator": 9e9}\n{"step": 800, "gene')
    assert "9e+09" not in section(report_of(run), "curves").text()


# ----------------------------------------------------------------------------------------------------------- pictures


def decoded(image: Node) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", image.attributes["src"]).groups()
    result = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert result.format.lower() == kind
    assert (str(result.width), str(result.height)) == (image.attributes["width"], image.attributes["height"])
    return result.convert("RGB")


def test_pictures_of_each_model_below_their_caption(run: Path) -> None:
    content = shown()
    for name, level in (("real", 10), ("before", 90), ("after", 170)):
        for row in range(2):
            for k in range(content["pictures"][name].shape[1]):
                content["pictures"][name][row, k] = level + 30 * row + 5 * k
    torch.save(content, run / "report.pt")
    cards = section(report_of(run), "pictures").all("article")
    assert [card.all("h3")[0].text() for card in cards] == CAPTIONS
    for row, card in enumerate(cards):
        figures = card.all("figure")
        assert [figure.all("figcaption")[0].text() for figure in figures] == ["real", "before", "after"]
        for figure, level, count in zip(figures, (10, 90, 170), (1, 4, 4), strict=True):
            levels = [decoded(image).getpixel((16, 16))[0] for image in figure.all("img")]
            assert levels == pytest.approx([level + 30 * row + 5 * k for k in range(count)], abs=1)
    assert cards[0].all("img")[2].attributes["alt"] == f"before, 2 of 4: {CAPTIONS[0]}"


def test_the_smaller_encoding_is_taken() -> None:
    flat, noise = Image.new("RGB", (64, 64), "red"), Image.fromarray(torch.randint(0, 256, (64, 64, 3)).byte().numpy())
    assert embedded(flat, "flat")["src"].startswith("data:image/png")
    assert embedded(noise, "noise")["src"].startswith("data:image/jpeg")


def test_large_pictures_are_shrunk(run: Path) -> None:
    torch.save(shown(200, ["a bird"], ["bird"], 1), run / "report.pt")
    assert {image.attributes["width"] for image in section(report_of(run), "pictures").all("img")} == {"160"}


def test_a_caption_that_comes_twice_is_shown_twice(run: Path) -> None:
    torch.save(shown(captions=["a bird", "a bird"]), run / "report.pt")
    assert [h.text() for h in section(report_of(run), "pictures").all("h3")] == ["a bird", "a bird"]


def test_attention_word_by_word(run: Path) -> None:
    tables = section(report_of(run), "attention").all("table")
    assert [table.all("caption")[0].text() for table in tables] == CAPTIONS
    for table in tables:
        assert [head.text() for head in table.all("thead")[0].all("th")] == ["", "picture", *WORDS]
        lines = table.all("tbody")[0].all("tr")
        assert [line.all("th")[0].text() for line in lines] == ["real", "drawn"]
        assert [len(line.all("img")) for line in lines] == [1 + len(WORDS)] * 2
    # Weights run along the words in one picture and against them in the other.
    content = shown(words=["left", "right"])
    bright = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    sides = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    content["attention"][0] |= {"real": bright, "fake": bright, "real_maps": sides, "fake_maps": sides.flip(0)}
    torch.save(content, run / "report.pt")
    found = []
    for line in section(report_of(run), "attention").all("table")[0].all("tbody")[0].all("tr"):
        pixels = [decoded(image) for image in line.all("img")[1:]]
        found += [[picture.getpixel((x, 64))[0] > 120 for x in (2, 125)] for picture in pixels]
    assert found == [[True, False], [False, True], [False, True], [True, False]]
    alt = tables[0].all("img")[-1].attributes["alt"]
    assert alt == "drawn picture, light where the matcher looks for “<b>bird</b>”"


def test_light_is_where_the_weight_is() -> None:
    picture = Image.new("RGB", (64, 64), (200, 100, 50))
    weights = torch.full((2, 4), 0.01)
    weights[1, 3] = 0.3
    result = lit(picture, weights, 128)
    assert result.size == (128, 128)
    assert result.getpixel((124, 124)) == (200, 100, 50)
    for place in ((3, 3), (124, 3), (3, 124)):
        assert result.getpixel(place) == pytest.approx((40, 20, 10), abs=2)
    # An outline between them, whatever the picture's own light.
    for colour in ("black", "white"):
        colours = {value for _, value in lit(Image.new("RGB", (64, 64), colour), weights, 128).getcolors(99999)}
        assert {(255, 255, 255), (0, 0, 0)} <= colours
    # None where none is wanted.
    plain = lit(Image.new("RGB", (64, 64), "white"), weights, 96, outlined=False)
    assert plain.size == (96, 96)
    assert plain.getextrema() == ((51, 255),) * 3
    assert lit(picture, torch.full((2, 4), 0.5), 128).getcolors() == [(128 * 128, (200, 100, 50))]
    weights[0, 0] = math.nan
    assert lit(picture, weights, 128).getpixel((124, 3)) == pytest.approx((40, 20, 10), abs=8)
    assert lit(picture, torch.full((2, 4), math.nan), 128).getcolors() == [(128 * 128, (200, 100, 50))]


def test_best_and_worst_with_scores_and_who_gave_them(run: Path) -> None:
    part = section(report_of(run), "extremes")
    assert f"VLMS by evaluator birds.second.vlm.pt {EVALUATOR}." in part.text()
    assert [heading.text() for heading in part.all("h3")] == ["Best", "Worst"]
    captions = [caption.text() for caption in part.all("figcaption")]
    assert captions == ["0.900 caption 0", "0.880 caption 1", "0.100 caption 0", "0.120 caption 1"]
    assert len(part.all("img")) == 4


# ----------------------------------------------------------------------------------------------------------- settings


def test_settings_and_versions_are_listed(run: Path) -> None:
    training, facts = section(report_of(run), "settings").all("details")
    values = dict(lines_of(training))
    assert values["settings.vlm.lambda_vlm"] == "0.4"
    assert values["settings.adam_betas"] == "[0.0, 0.9]"
    assert values["settings.vlm.terms"] == "null"
    assert dict(lines_of(facts))["evaluator.fingerprint"] == EVALUATOR
    assert dict(lines_of(facts))["versions.torch"] == "2.15.0"


def test_settings_that_differ_are_marked_in_words(pair: list[Path]) -> None:
    training, _ = section(report_of(*pair), "settings").all("details")
    assert [row.all("th")[0].text() for row in training.all("tr", "differs")] == ["settings.vlm.lambda_vlm", "vlm"]
    assert [row for row in lines_of(training) if row[1] == "differs"] == [
        ["settings.vlm.lambda_vlm", "differs", "0.4", "0.0"],
        ["vlm", "differs", "packaged", "null"],
    ]
    assert "2 of 10 differ" in training.all("summary")[0].text()


def test_nested_settings_become_lines() -> None:
    nested = {"a": {"b": {"c": 1, "d": [1, {"e": 2}]}, "f": "x"}, "g": {}, "h": True, "i": None}
    assert flattened(nested) == {
        "a.b.c": "1",
        "a.b.d": '[1, {"e": 2}]',
        "a.f": "x",
        "g": "{}",
        "h": "true",
        "i": "null",
    }


# --------------------------------------------------------------------------------------------- what is not there or bad


@pytest.mark.parametrize(
    ("file", "sections"),
    [("log.jsonl", ["curves"]), ("report.pt", ["pictures", "attention", "extremes"]), ("options.json", ["settings"])],
)
def test_a_missing_file_leaves_out_what_it_holds_and_says_why(tmp_path: Path, file: str, sections: list[str]) -> None:
    run, whole = make_run(tmp_path / "run", file), make_run(tmp_path / "whole")
    root, both = report_of(run), report_of(run, whole)
    for name in ("curves", "pictures", "attention", "extremes", "settings"):
        reasons = [line.text() for line in section(root, name).all("p", "none")]
        if name not in sections:
            assert reasons == []
            continue
        (reason,) = reasons
        assert f"there is no {file}" in reason
        assert not section(root, name).all("img")
        assert not section(root, name).all("svg")
        # Beside another run, that one's is shown.
        assert f"run has no {file}" in section(both, name).all("p", "none")[0].text()
        assert any(section(both, name).all(tag) for tag in ("img", "svg", "table"))


def test_an_evaluation_alone_makes_a_page(tmp_path: Path) -> None:
    root = report_of(make_run(tmp_path / "run", "log.jsonl", "report.pt", "options.json"))
    assert len(root.all("p", "none")) == 5
    assert len(section(root, "results").all("table")) == 1


def test_parts_that_an_evaluation_left_out(run: Path) -> None:
    """An encoder without regions has no attention, a matcher without a scorer no best and worst."""
    torch.save({**shown(), "attention": [], "best": None, "worst": None}, run / "report.pt")
    root = report_of(run)
    assert "no regions" in section(root, "attention").text()
    assert "without a scorer" in section(root, "extremes").text()
    torch.save({}, run / "report.pt")
    (run / "log.jsonl").write_text("", encoding="utf-8")
    root = report_of(run)
    assert len(root.all("p", "none")) == 4
    change(run / "evaluation.json", lambda e: e["columns"].pop("vlms"))
    torch.save(shown(), run / "report.pt")
    assert "does not name" in section(report_of(run), "extremes").text()


def test_a_run_that_was_not_evaluated_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for folder in (tmp_path / "run", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"evaluation\.json, got none: run vlm-plugin evaluate") as refused:
            write_report([folder], tmp_path / "page.html")
        assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", b"{"), ("evaluation.json", b"[]"), ("evaluation.json", b"{}"), ("evaluation.json", b"\xff"),
        ("evaluation.json", b'{"manifest": {"a": 1}, "columns": {"a": {}}, "rows": [{}]}'),
        ("options.json", b"3"), ("report.pt", b"nothing"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(run: Path, file: str, content: bytes) -> None:
    (run / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(run / file))):
        write_report([run], run / "report.html")


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["captions"].pop(),
        lambda c: c["pictures"].update(real=torch.zeros(2, 1, 3, 8, 8)),
        lambda c: c["pictures"].update(after=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        lambda c: c["best"]["scores"].pop(),
        lambda c: c["worst"].pop("scores"),
        lambda c: c["attention"][0]["words"].pop(),
        lambda c: c["attention"][1].update(fake=torch.zeros(8, 8, dtype=torch.uint8)),
        lambda c: c.update(pictures=[1]),
    ],
)
def test_pictures_that_do_not_fit_together_are_refused(run: Path, damage: Callable[[dict], object]) -> None:
    content = shown()
    damage(content)
    torch.save(content, run / "report.pt")
    with pytest.raises(ValueError, match=re.escape(str(run / "report.pt"))):
        write_report([run], run / "report.html")


def test_bad_arguments(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs: expected at least one"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(ValueError, match="runs: expected different folders"):
        write_report([run, run.parent / "." / run.name], tmp_path / "page.html")
    with pytest.raises(ValueError, match="out: expected a file to write, got the folder"):
        write_report([run], tmp_path)


@pytest.mark.parametrize("where", ["file/page.html", "taken.html"])
def test_without_a_place_for_the_page_none_is_made(
    run: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_plugin.report.report.render", None)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("vlm_plugin.files._beside", lambda path: path / "nowhere")  # as if rights were missing
    with pytest.raises(OSError, match=rf"^{tmp_path / where}: expected a file that can be written, got "):
        write_report([run], tmp_path / where)


def test_the_command(pair: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.chdir(pair[0].parent)

    def run(*words: object) -> str:
        report_module.run(parser.parse_args([str(word) for word in words]))
        return capsys.readouterr().out

    assert run(pair[0]) == f"wrote {pair[0] / 'report.html'}\n"
    assert "<h1>00000-dfgan-vlm</h1>" in (pair[0] / "report.html").read_text(encoding="utf-8")
    assert run(*pair) == "wrote report.html\n"
    assert "2 runs side by side" in Path("report.html").read_text(encoding="utf-8")
    run(pair[0], "--out", "new/page.html")
    assert Path("new/page.html").is_file()


# ---------------------------------------------------------------------------------------------------------- a browser

# Measures a page in frames of several widths and writes what it finds into its own text.
_FRAMES = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const found = [];
for (const width of [360, 390, 1200]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "page.html";
  frame.onload = () => {
    const inside = frame.contentDocument, root = inside.documentElement;
    for (const details of inside.querySelectorAll("details")) details.open = true;
    const images = [...inside.images], boxes = [...inside.querySelectorAll(".scroll")];
    found.push({
      width, page: root.scrollWidth, images: images.length,
      loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
      scrolling: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
      curves: [...inside.querySelectorAll("path.smooth")].filter(path => path.getTotalLength() > 100).length,
      back: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
      texts: [...inside.querySelectorAll("h3")].map(heading => heading.textContent),
    });
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script><pre id="found"></pre>"""


def visit(browser: str, profile: Path, page: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--allow-file-access-from-files",
            "--enable-logging=stderr", f"--user-data-dir={profile}", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_all_on_a_phone_too(pair: list[Path], tmp_path: Path, browser: str, scheme: str) -> None:
    long_name = tmp_path / ("a-run-with-a-very-long-name" * 4)
    pair[1].rename(long_name)
    write_report([pair[0], long_name], tmp_path / "page.html")
    (tmp_path / "frames.html").write_text(_FRAMES, encoding="utf-8")
    setting = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    seen = visit(browser, tmp_path / "profile", tmp_path / "frames.html", setting, "--dump-dom")
    assert "CONSOLE" not in seen.stderr
    reader = Reader()
    # Not the page's own markup but the browser's.
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', seen.stdout)
    reader.feed(text)
    found = {one["width"]: one for one in json.loads(reader.root.text())}
    assert sorted(found) == [360, 390, 1200]
    count = len(tree(tmp_path / "page.html").all("img"))
    for width, one in found.items():
        assert one["page"] == width
        assert one["loaded"] == one["images"] == count > 50
        assert one["curves"] >= 2 * 3 + len(TERMS)
        assert CAPTIONS[0] in one["texts"]
        assert one["back"] == ("rgb(251, 251, 250)" if scheme == "light" else "rgb(20, 23, 26)")
    assert found[360]["scrolling"] >= found[1200]["scrolling"]
    assert found[360]["scrolling"] > 0


@pytest.mark.browser
def test_a_screenshot_is_a_picture(run: Path, tmp_path: Path, browser: str) -> None:
    out = write_report([run], tmp_path / "page.html")
    for width, height in ((1200, 2400), (500, 2400)):
        shot = tmp_path / f"{width}.png"
        visit(browser, tmp_path / "profile", out, f"--screenshot={shot}", f"--window-size={width},{height}")
        with Image.open(shot) as image:
            assert image.size == (width, height)
            assert len(image.convert("RGB").quantize(256).getcolors()) > 100


@pytest.mark.browser
def test_a_browser_would_notice_what_is_wrong(run: Path, tmp_path: Path, browser: str) -> None:
    """The checks above can fail: a wide box, a broken picture and a refused script are seen."""
    body = '<div style="width: 2000px">x</div><img src="data:image/png;base64,AAAA" alt="x"/><script>1</script>'
    right = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    bad = re.sub("<body>.*</body>", f"<body>{body}</body>", right, flags=re.DOTALL)
    (tmp_path / "page.html").write_text(bad, encoding="utf-8")
    (tmp_path / "frames.html").write_text(_FRAMES, encoding="utf-8")
    seen = visit(browser, tmp_path / "profile", tmp_path / "frames.html", "--dump-dom")
    assert "CONSOLE" in seen.stderr
    assert '"page":20' in seen.stdout
    assert '"images":1,"loaded":0' in seen.stdout
