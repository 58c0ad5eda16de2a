"""Scores of pictures that any generator drew: the numbers, the missed words, every captions file and every refusal."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from vlm_plugin import VLM
from vlm_plugin.cli.main import main
from vlm_plugin.cli.score import add_arguments, run
from vlm_plugin.data.birds.captions import read_caption, swap_caption
from vlm_plugin.data.birds.drawing import draw_bird
from vlm_plugin.data.birds.make import plan_birds
from vlm_plugin.data.captions import list_pictures, natural_key, read_captions
from vlm_plugin.data.images import central_square
from vlm_plugin.evaluation.score import COLUMNS, Row, _load, describe, score, write_scores
from vlm_plugin.matching import context_cosines, global_scores, local_scores
from vlm_plugin.metrics.base import mean_and_spread

COUNT = 40


@pytest.fixture(scope="module")
def matcher() -> VLM:
    """The packaged one."""
    return VLM.load("birds.vlm.pt")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 0.png to 39.png, each of another species."""
    folder = tmp_path_factory.mktemp("birds")
    for number, bird in enumerate(plan_birds("test", 10 * COUNT, seed=3)[::10]):
        draw_bird(bird.values, 64, bird.seed).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def captions() -> dict[str, str]:
    plan = plan_birds("test", 10 * COUNT, seed=3)[::10]
    return {f"{number}.png": bird.captions[number % 10] for number, bird in enumerate(plan)}


@pytest.fixture(scope="module")
def rows(matcher: VLM, birds: Path, captions: dict[str, str]) -> list[Row]:
    return score(matcher, birds, captions)


def paint(folder: Path, *names: str, size: tuple[int, int] = (32, 32)) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * number % 256, 90, 200 - 30 * number % 200)).save(folder / name)
    return folder


def tensor(path: Path) -> torch.Tensor:
    """A 64-pixel picture as it is."""
    with Image.open(path) as image:
        values = torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.float32)
    return (values.reshape(1, 64, 64, 3) / 127.5 - 1).permute(0, 3, 1, 2)


def command(*words: object) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(word) for word in words]))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The numbers.


def test_rows_equal_the_matcher_pair_by_pair(
    matcher: VLM, birds: Path, captions: dict[str, str], rows: list[Row]
) -> None:
    assert sorted(row.file_name for row in rows) == sorted(captions)
    for row in rows[::5]:
        assert row.caption == captions[row.file_name]
        with torch.no_grad():
            image, text = matcher.encode_image(tensor(birds / row.file_name)), matcher.encode_text([row.caption])
            logit = matcher.scorer(image, text, "caption").double()
        assert row.general == pytest.approx(float(logit), rel=1e-4)
        assert row.vlms == pytest.approx(float(logit.sigmoid()), rel=1e-4)
        assert row.local_score == pytest.approx(float(local_scores(image, text, 4.0, 5.0)), rel=1e-4)
        assert row.global_score == pytest.approx(float(global_scores(image, text)), rel=1e-4)


def test_best_first(rows: list[Row]) -> None:
    scores = [float(f"{row.vlms:.4g}") for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert rows[0].vlms > rows[-1].vlms + 0.2


def test_the_batch_changes_nothing_but_rounding(
    matcher: VLM, birds: Path, captions: dict[str, str], rows: list[Row]
) -> None:
    assert len({len(matcher.words(caption)) for caption in captions.values()}) > 3
    for batch in (1, 16):
        other = {row.file_name: row for row in score(matcher, birds, captions, batch=batch)}
        for row in rows:
            again = other[row.file_name]
            for name in ("vlms", "local_score", "global_score", "general"):
                assert getattr(row, name) == pytest.approx(getattr(again, name), rel=1e-5, abs=1e-5), name
            assert [word for word, _ in row.missed] == [word for word, _ in again.missed]
            assert [c for _, c in row.missed] == pytest.approx([c for _, c in again.missed], rel=1e-5, abs=1e-5)


def test_the_order_of_the_captions_does_not_matter(
    matcher: VLM, birds: Path, captions: dict[str, str], rows: list[Row]
) -> None:
    names = sorted(captions, key=lambda name: captions[name])
    assert score(matcher, birds, {name: captions[name] for name in names}) == rows


def test_captions_of_other_pictures_score_lower(
    matcher: VLM, birds: Path, captions: dict[str, str], rows: list[Row]
) -> None:
    texts = list(captions.values())
    shuffled = dict(zip(captions, texts[7:] + texts[:7], strict=True))
    wrong = score(matcher, birds, shuffled)
    assert sum(row.vlms for row in wrong) / COUNT < sum(row.vlms for row in rows) / COUNT - 0.3


def test_equal_scores_stand_in_natural_order(tmp_path: Path, matcher: VLM, birds: Path) -> None:
    for name in ("10.png", "9.png", "a/2.png", "1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((birds / "0.png").read_bytes())
    names = ("10.png", "9.png", "a/2.png", "1.png")
    found = score(matcher, tmp_path, dict.fromkeys(names, "a bird with a red crown."), batch=3)
    assert [row.file_name for row in found] == ["1.png", "9.png", "10.png", "a/2.png"]
    # No picture shows any word better than its twins.
    assert {row.missed for row in found} == {()}


def test_without_a_scorer_the_global_level_decides(tmp_path: Path, birds: Path, captions: dict[str, str]) -> None:
    found = score(tiny.build_matcher(scorer=False), birds, captions)
    assert {(row.vlms, row.general) for row in found} == {(None, None)}
    scores = [float(f"{row.global_score:.4g}") for row in found]
    assert scores == sorted(scores, reverse=True)
    assert "no scorer" in describe(found)
    write_scores(found, tmp_path / "scores.csv")
    table = read_table(tmp_path / "scores.csv")
    assert {(line["vlms"], line["general"]) for line in table} == {("", "")}
    assert float(table[0]["global"]) == pytest.approx(found[0].global_score, rel=1e-3)


def test_a_matcher_in_training_mode_is_put_to_eval(birds: Path, captions: dict[str, str], rows: list[Row]) -> None:
    assert score(VLM.load("birds.vlm.pt").train(), birds, captions) == rows


# The pictures.


def test_a_square_picture_is_scored_to_its_border() -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    for corner in ((0, 0), (63, 0), (0, 63), (63, 63)):
        image.putpixel(corner, (0, 0, 255))
    pixels = central_square(image, 64)
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 1, 1].tolist() == [1, -1, -1]
    for y in (0, 63):
        for x in (0, 63):
            assert pixels[:, y, x].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("upright", [False, True])
def test_of_a_long_picture_the_middle_counts(upright: bool) -> None:
    image = Image.new("RGB", (90, 30), (255, 255, 255))
    image.paste((0, 0, 0), (30, 0, 60, 30))
    image = image.transpose(Image.Transpose.ROTATE_90) if upright else image
    assert (central_square(image, 30) == -1).all()
    # Resized after cropping: no white reaches the square's border beyond the filter's own width.
    assert (central_square(image, 15)[:, 1:-1, 1:-1] == -1).all()


def test_pictures_of_any_size_are_resized_to_the_matcher_s(tmp_path: Path) -> None:
    vlm = tiny.build_matcher()
    paint(tmp_path, "small.png", size=(7, 7))
    paint(tmp_path, "large.png", size=(300, 200))
    pixels = _load(vlm, tmp_path, ["small.png", "large.png"])
    assert pixels.shape == (2, 3, 64, 64)
    assert torch.equal(pixels[0], pixels[1])


# The missed words.


def missed_by_loops(vlm: VLM, folder: Path, captions: dict[str, str], others: list[str]) -> dict[str, list[str]]:
    """Picture -> its missed words, by loops over pictures and words."""
    with torch.no_grad():
        images = {name: vlm.encode_image(tensor(folder / name)) for name in captions}
        result = {}
        for name, caption in captions.items():
            text = vlm.encode_text([caption])
            own = context_cosines(images[name], text)[0, 0].tolist()
            others_cosines = [context_cosines(images[n], text)[0, 0].tolist() for n in others if n != name]
            short = []
            for place, word in enumerate(vlm.words(caption)):
                gap = max(cosines[place] for cosines in others_cosines) - own[place]
                if gap > 1e-5:
                    short.append((-gap, place, word))
            result[name] = [word for _, _, word in sorted(short)[:3]]
    return result


@pytest.mark.parametrize("count", [3, 6])
def test_missed_words_against_loops(matcher: VLM, birds: Path, captions: dict[str, str], count: int) -> None:
    some = {name: captions[name] for name in list(captions)[:count]}
    expected = missed_by_loops(matcher, birds, some, list(some))
    found = {row.file_name: [word for word, _ in row.missed] for row in score(matcher, birds, some)}
    assert found == expected
    assert any(expected.values())


def test_missed_words_are_compared_with_32_pictures(
    matcher: VLM, birds: Path, captions: dict[str, str], rows: list[Row]
) -> None:
    drawn = [f"{i}.png" for i in torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).tolist()]
    found = {row.file_name: [word for word, _ in row.missed] for row in rows}
    assert found == missed_by_loops(matcher, birds, captions, drawn[:32])
    for count in (31, 33):
        assert found != missed_by_loops(matcher, birds, captions, drawn[:count])


def test_the_cosine_of_a_missed_word_is_the_picture_s_own(
    matcher: VLM, birds: Path, captions: dict[str, str], rows: list[Row]
) -> None:
    for row in rows[:5]:
        with torch.no_grad():
            image, text = matcher.encode_image(tensor(birds / row.file_name)), matcher.encode_text([row.caption])
        own = list(zip(matcher.words(row.caption), context_cosines(image, text)[0, 0].tolist(), strict=True))
        for word, cosine in row.missed:
            assert any(word == w and cosine == pytest.approx(c, abs=1e-4) for w, c in own)


def test_a_wrong_word_is_found(matcher: VLM, birds: Path, captions: dict[str, str]) -> None:
    """One attribute's word exchanged: among the three missed words for most pictures, the first for over half."""
    rng = random.Random(0)
    swapped = {}
    for name, caption in captions.items():
        said = read_caption(caption)
        swapped[name] = swap_caption(caption, list(said), said, rng)[0]
    first = among = 0
    for row in score(matcher, birds, swapped):
        before, after = matcher.words(captions[row.file_name]), matcher.words(row.caption)
        wrong = next(b for a, b in zip(before, after, strict=True) if a != b)
        words = [word for word, _ in row.missed]
        first += words[:1] == [wrong]
        among += wrong in words
    assert among >= 0.75 * COUNT
    assert first >= 0.5 * COUNT


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_pictures_have_the_plain_cosine(
    matcher: VLM, birds: Path, captions: dict[str, str], count: int
) -> None:
    some = {name: captions[name] for name in list(captions)[:count]}
    for row in score(matcher, birds, some):
        with torch.no_grad():
            image, text = matcher.encode_image(tensor(birds / row.file_name)), matcher.encode_text([row.caption])
        own = context_cosines(image, text)[0, 0].tolist()
        words = matcher.words(row.caption)
        assert [word for word, _ in row.missed] == [w for _, w in sorted(zip(own, words, strict=True))[:3]]


def test_unknown_words_are_never_missed(matcher: VLM, birds: Path) -> None:
    caption = "a zebra bird zygote quokka red"
    assert matcher.words(caption) == ["a", "<unk>", "bird", "<unk>", "<unk>", "red"]
    for count in (2, 5):
        for row in score(matcher, birds, {f"{i}.png": caption for i in range(count)}):
            assert {word for word, _ in row.missed} <= {"a", "bird", "red"}
            assert count > 2 or len(row.missed) == 3


# The captions file.

PICTURES = ("10.png", "2.png", "sub/3.JPG")
TEXTS = {"10.png": "ein Vögelchen — blau", "2.png": 'a "red" bird,\nwith\r\na 🐦 crown', "sub/3.JPG": "a; b\tc"}


def as_table(delimiter: str, title: str = "caption") -> str:
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=delimiter)
    table.writerow(("number", title, "file_name"))
    table.writerows((i, f"  {caption} ", name) for i, (name, caption) in enumerate(TEXTS.items()))
    return text.getvalue()


def as_lines(title: str) -> str:
    lines = [json.dumps({"file_name": n, title: c, "more": 1}, ensure_ascii=False) for n, c in TEXTS.items()]
    return "\n\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", as_table(",")),
        ("captions.CSV", as_table(",", "text")),
        ("captions.tsv", as_table("\t")),
        ("captions.jsonl", as_lines("text")),
        ("captions.jsonl", as_lines("caption")),
        ("captions.json", json.dumps(TEXTS)),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_captions_files(tmp_path: Path, name: str, content: str, mark: str) -> None:
    folder = paint(tmp_path / "pictures", *PICTURES)
    (tmp_path / name).write_bytes((mark + content).encode())
    found = read_captions(tmp_path / name, folder)
    assert found == TEXTS
    assert list(found) == ["2.png", "10.png", "sub/3.JPG"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "file_name , text, caption \n\n1.png,no,a \u2028 bird\n\n"),
        ("c.jsonl", '{"file_name": "1.png", "text": "no", "caption": "a \u2028 bird"}'),
    ],
)
def test_blank_lines_and_both_titles(tmp_path: Path, name: str, content: str) -> None:
    """Of caption and text the former counts; a line separator inside a caption is no line end."""
    folder = paint(tmp_path / "pictures", "1.png")
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_captions(tmp_path / name, folder) == {"1.png": "a \u2028 bird"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_one_caption_a_line_in_natural_order(tmp_path: Path, end: str) -> None:
    folder = paint(tmp_path / "pictures", *PICTURES)
    # A line separator inside a caption is no line end here.
    lines = ["the second,", 'the "tenth" \u2028 bird', "the third"]
    (tmp_path / "captions.txt").write_bytes((end.join(lines) + 2 * end).encode())
    assert read_captions(tmp_path / "captions.txt", folder) == dict(
        zip(("2.png", "10.png", "sub/3.JPG"), lines, strict=True)
    )


def test_natural_order() -> None:
    names = ["10.png", "b2.png", "9.png", "b10.png", "a.png", "01.png", "1.png", "b2/10.png", "b2/9.png"]
    expected = ["01.png", "1.png", "9.png", "10.png", "a.png", "b2.png", "b2/9.png", "b2/10.png", "b10.png"]
    assert sorted(names, key=natural_key) == expected
    assert sorted(names[::-2] + names[-2::-2], key=natural_key) == expected


def test_hidden_files_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    paint(tmp_path, "1.png", "._2.png", ".hidden/3.png", "deep/down/4.jpeg")
    (tmp_path / "captions.csv").write_text("file_name,caption\n", encoding="utf-8")
    assert list_pictures(tmp_path) == ["1.png", "deep/down/4.jpeg"]


def test_a_picture_of_another_extension_may_be_named(tmp_path: Path) -> None:
    folder = paint(tmp_path / "pictures", "1.png", "2.ppm")
    (tmp_path / "c.json").write_text('{"2.ppm": "a bird", "./1.png": "a crown"}', encoding="utf-8")
    assert read_captions(tmp_path / "c.json", folder) == {"1.png": "a crown", "2.ppm": "a bird"}


def test_a_name_that_the_folder_has_is_right_as_it_stands(tmp_path: Path) -> None:
    """As names are that went through a wrong code page."""
    folder = paint(tmp_path / "pictures", "VÃ¶gel.png")
    (tmp_path / "c.json").write_text('{"VÃ¶gel.png": "a bird"}', encoding="utf-8")
    assert read_captions(tmp_path / "c.json", folder) == {"VÃ¶gel.png": "a bird"}


def test_latin_1_is_read_with_a_warning(tmp_path: Path) -> None:
    folder = paint(tmp_path / "pictures", "1.png")
    (tmp_path / "c.txt").write_bytes("ein Vögelchen".encode("latin-1"))
    with pytest.warns(UserWarning, match=r"c\.txt: expected UTF-8"):
        assert read_captions(tmp_path / "c.txt", folder) == {"1.png": "ein Vögelchen"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "", r"c\.csv: expected a header with file_name and caption \(or text\), got \[\]"),
        ("c.csv", "name,caption\n1.png,a\n", r"c\.csv: expected a header .* got \['name', 'caption'\]"),
        ("c.csv", "file_name,title\n1.png,a\n", r"c\.csv: expected a header .* got \['file_name', 'title'\]"),
        ("c.csv", "file_name\tcaption\n1.png\ta\n", r"c\.csv: expected a header"),
        ("c.csv", "file_name,caption\n1.png,a, b\n", r"c\.csv, line 2: expected 2 fields as in the header, got 3"),
        ("c.csv", "file_name,caption\n1.png\n", r"c\.csv, line 2: expected 2 fields as in the header, got 1"),
        ("c.csv", 'file_name,caption\n1.png,"a\n2.png,b\n', r"c\.csv, line 3: expected a table, but reading it failed"),
        ("c.tsv", 'file_name\tcaption\n1.png\t"a" b\n', r"c\.tsv, line 2: expected a table, but reading it failed"),
        ("c.csv", "file_name,caption\n1.png, \n", r"c\.csv, line 2: expected a caption, got an empty one"),
        ("c.csv", "file_name,caption\n1.png,a\n./1.png,b\n", r"c\.csv, line 3: .* each picture once, got 1\.png again"),
        ("c.csv", "file_name,caption\n../1.png,a\n", r"c\.csv, line 2: expected names of files inside .*\.\./1\.png"),
        ("c.json", '{"/etc/1.png": "a"}', r"c\.json, '/etc/1\.png': expected names of files inside the data folder"),
        ("c.json", '{"C:\\\\1.png": "a"}', r"c\.json, .*: expected names of files inside the data folder"),
        ("c.jsonl", '{"file_name": "a\\u0000", "text": "a"}', r"c\.jsonl, line 1: expected names of files inside"),
        ("c.jsonl", '{"file_name": 3, "text": "a"}', r"c\.jsonl, line 1: expected names that are strings, got 3"),
        ("c.jsonl", '\n{"file_name": "1.png"}', r"c\.jsonl, line 2: expected an object with file_name and caption"),
        ("c.jsonl", '{"text": "1.png"}', r"c\.jsonl, line 1: expected an object with file_name and caption"),
        ("c.jsonl", '["1.png", "a"]', r"c\.jsonl, line 1: expected a JSON object, got \[\"1\.png\", \"a\"\]"),
        ("c.jsonl", '{"file_name": "1.png", ', r"c\.jsonl, line 1: expected JSON, but reading it failed"),
        ("c.jsonl", '{"file_name": "1.png", "text": ["a"]}', r"line 1: expected a caption, got \['a'\] of type list"),
        ("c.json", '{"1.png": null}', r"c\.json, '1\.png': expected a caption, got None of type NoneType"),
        ("c.json", '{"1.png": "a", "1.png": "b"}', r"c\.json: expected each name once, got '1\.png' again"),
        ("c.json", "[" * 100_000, r"c\.json: expected JSON, but reading it failed"),
        ("c.json", "[]", r"c\.json: expected a JSON object, got \[\]"),
        ("c.txt", "a\nb\nc\n", r"c\.txt: expected one caption a line for each of the 2 pictures, got 3 lines"),
        ("c.txt", "a", r"c\.txt: expected one caption a line for each of the 2 pictures, got 1 line$"),
        ("c.txt", " \nb", r"c\.txt, line 1: expected a caption, got an empty one"),
        ("c.txt", "a\0\nb", r"c\.txt: expected a text file, got NUL bytes"),
        (
            "c.json",
            '{"1.png": "a", "3.png": "a", "4.png": "b"}',
            r"c\.json: expected one caption for each picture in .*pictures, got 2 captions without a picture "
            r"\(the first: 3\.png\) and 1 picture without a caption \(the first: 2\.png\)",
        ),
        ("c.json", '{"1.png": "a", "2.png": "a", "sub": "b"}', r"got 1 caption without a picture \(the first: sub\)$"),
        ("c.json", "{}", r"got 2 pictures without a caption \(the first: 1\.png\)$"),
    ],
)
def test_captions_files_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = paint(tmp_path / "pictures", "1.png", "2.png")
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / name, folder)


def test_what_is_not_there(tmp_path: Path, matcher: VLM) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder of pictures, found no such folder"):
        read_captions(tmp_path / "c.csv", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected pictures \(\.jpg, .*\), found none"):
        read_captions(tmp_path / "c.csv", tmp_path / "empty")
    paint(tmp_path, "1.png")
    with pytest.raises(FileNotFoundError, match=r"c\.csv: expected a text file, found no such file"):
        read_captions(tmp_path / "c.csv", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"2\.png: expected a picture, found no such file"):
        score(matcher, tmp_path, {"2.png": "a bird"})


def test_what_cannot_be_scored(tmp_path: Path, matcher: VLM) -> None:
    paint(tmp_path, "1.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.png: expected a picture, got a file of no format"):
        score(matcher, tmp_path, {"1.png": "a bird", "2.png": "a bird"})
    with pytest.raises(ValueError, match=r"1\.png: caption: expected at least one word of the vocabulary .*: 'xyzzy'"):
        score(matcher, tmp_path, {"1.png": "xyzzy"})
    with pytest.raises(ValueError, match="batch: expected at least 1 picture, got 0"):
        score(matcher, tmp_path, {"1.png": "a bird"}, batch=0)
    with pytest.raises(ValueError, match="captions: expected at least one, got none"):
        score(matcher, tmp_path, {})


# What is written and printed.


def test_the_table_reads_back(tmp_path: Path) -> None:
    texts = ['a "red" bird, with wings', "two\nlines\r\nand\ra return", "🐦 bird; or \u2028 two", "a\tb", "ö\ud83d"]
    given = [
        Row(f"{i}.png", text, 0.5 - i / 10, 1 / 3, -0.25, i - 1e-7, (("wings", 0.123), ("black", -0.2)))
        for i, text in enumerate(texts)
    ]
    write_scores(given, tmp_path / "s.csv")
    table = read_table(tmp_path / "s.csv")
    assert tuple(table[0]) == COLUMNS == ("file_name", "caption", "vlms", "local", "global", "general", "missed")
    assert [line["caption"] for line in table] == [*texts[:-1], "ö\\ud83d"]
    assert [line["file_name"] for line in table] == [row.file_name for row in given]
    assert {line["missed"] for line in table} == {"wings 0.12; black -0.20"}
    assert [float(line["vlms"]) for line in table] == pytest.approx([row.vlms for row in given], rel=1e-3)
    assert [float(line["general"]) for line in table] == pytest.approx([row.general for row in given], rel=1e-3)
    assert {(line["local"], line["global"]) for line in table} == {("0.3333", "-0.25")}


def test_a_kill_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.csv"
    path.write_text("old", encoding="utf-8")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_scores([], path)
    assert path.read_text(encoding="utf-8") == "old"
    write_scores([], path)
    assert os.listdir(tmp_path) == ["s.csv"]
    assert read_table(path) == []


def test_the_command(
    tmp_path: Path, birds: Path, captions: dict[str, str], rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in birds.iterdir()}
    (tmp_path / "c.json").write_text(json.dumps(captions), encoding="utf-8")
    out = tmp_path / "new" / "s.csv"
    common = ("--vlm", "birds.vlm.pt", "--images", birds, "--device", "cpu", "--out")
    command(*common, out, "--captions", tmp_path / "c.json")
    printed = capsys.readouterr().out
    mean, spread = mean_and_spread(torch.tensor([row.vlms for row in sorted(rows, key=lambda r: natural_key(r[0]))]))
    assert f"VLMS: mean {mean:.4f}, spread {spread:.4f} over 10 folds, 40 pictures\n" in printed
    assert f"matcher {VLM.load('birds.vlm.pt').fingerprint} (birds.vlm.pt)\nwrote {out}, best first\n" in printed
    shown = [line.split()[:3] for line in printed.splitlines()[1:7]]
    assert shown == [
        [name, f"{row.vlms:.3f}", row.file_name]
        for name, part in (("best", rows[:3]), ("worst", rows[-3:]))
        for row in part
    ]
    table = read_table(out)
    assert [line["file_name"] for line in table] == [row.file_name for row in rows]
    assert [float(line["vlms"]) for line in table] == pytest.approx([row.vlms for row in rows], rel=1e-3)
    assert {path.name: path.stat().st_mtime_ns for path in birds.iterdir()} == before
    # Its own table has captions too.
    command(*common, tmp_path / "again.csv", "--captions", out)
    assert (tmp_path / "again.csv").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("pictures/s.csv", r"--out .*s\.csv: expected a file outside of the data folder .*pictures"),
        ("pictures/sub/s.csv", r"--out .*s\.csv: expected a file outside of the data folder .*pictures"),
        ("other/../pictures/s.csv", r"--out .*s\.csv: expected a file outside of the data folder .*pictures"),
        ("c.txt", r"out: expected another file than the captions, got .*c\.txt"),
        (".", "out: expected a file to write, got the folder"),
    ],
)
def test_places_where_nothing_is_written(tmp_path: Path, out: str, message: str) -> None:
    folder = paint(tmp_path / "pictures", "1.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "c.txt").write_text("a bird", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        command(
            "--vlm", tiny.matcher(), "--images", folder, "--captions", tmp_path / "c.txt", "--out", tmp_path / out
        )  # fmt: skip
    assert os.listdir(folder) == ["1.png"]
    assert (tmp_path / "c.txt").read_text(encoding="utf-8") == "a bird"


@pytest.mark.parametrize("where", ["file/s.csv", "taken.csv"])
def test_without_a_place_for_the_table_nothing_is_scored(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_plugin.evaluation.score.score", None)
    folder = paint(tmp_path / "pictures", "1.png")
    (tmp_path / "file").write_text("a bird", encoding="utf-8")
    monkeypatch.setattr("vlm_plugin.files._beside", lambda path: path / "nowhere")  # as if rights were missing
    with pytest.raises(OSError, match=rf"^{tmp_path / where}: expected a file that can be written, got "):
        command(
            "--vlm", tiny.matcher(), "--images", folder, "--captions", tmp_path / "file", "--out", tmp_path / where,
            "--device", "cpu",
        )  # fmt: skip


def test_a_terminal_without_emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paint(tmp_path / "pictures", "1.png")
    (tmp_path / "c.txt").write_text("a 🐦 bird", encoding="utf-8")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    words = [
        "--vlm", tiny.matcher(), "--images", folder, "--captions", tmp_path / "c.txt", "--out", tmp_path / "s.csv",
        "--device", "cpu",
    ]  # fmt: skip
    assert main(["score", *map(str, words)]) == 0
    assert b"a \\U0001f426 bird" in printed.getvalue()
    assert b"\n1 of 3 words in 1 caption is unknown to tiny.vlm.pt: \\U0001f426\nmatcher " in printed.getvalue()
    assert read_table(tmp_path / "s.csv")[0]["caption"] == "a 🐦 bird"


def test_a_few_pictures_are_shown_once() -> None:
    some = [Row(f"{i}.png", "a\n bird " + "x" * 90, 0.9 - i / 10, 0.0, 0.0, 0.0, ()) for i in range(5)]
    lines = describe(some).splitlines()
    assert lines[0] == "VLMS: mean 0.7000, no spread below 20 pictures, 5 pictures"
    assert [line.split()[0] for line in lines[1:]] == ["best", "best", "best", "worst", "worst"]
    assert lines[1] == f"best   0.900  0.png  a bird {'x' * 70}..."
    assert len(describe(some[:1]).splitlines()) == 2
