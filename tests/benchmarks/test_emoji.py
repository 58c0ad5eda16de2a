"""The emoji benchmark's data: captions, the split by emoji, and a build that is killed, gone on with and refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.emoji import (
    DATASOURCES,
    SIDE,
    SPLITS,
    Picture,
    begin,
    caption_of,
    captions_of,
    datasource_images,
    main,
    on_white,
    split_captions,
    write_set,
)
from vlm_plugin.data import open_split

HELD_OUT = {"test": 3, "validation": 2}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("grinning face", "grinning face"),
        ("woman firefighter: medium-dark skin tone", "woman firefighter with medium dark skin tone"),
        ("woman: light skin tone, curly hair", "woman with light skin tone and curly hair"),
        ("man: dark skin tone, bald", "bald man with dark skin tone"),
        ("person: beard", "person with beard"),
        ("man with white cane: light skin tone, facing right", "man facing right with white cane and light skin tone"),
        ("person running: facing right", "person running facing right"),
        ("handshake: dark skin tone, light skin tone", "handshake with dark skin tone and light skin tone"),
        ("family: man, woman, girl, boy", "family of man and woman and girl and boy"),
        (
            "couple with heart: woman, man, light skin tone, dark skin tone",
            "couple of woman and man with heart and light skin tone and dark skin tone",
        ),
        ("rescue worker’s helmet", "rescue worker helmet"),
        ("two o’clock", "two oclock"),
        ("piñata", "pinata"),
        ("Mrs. Claus", "mrs claus"),
    ],
)
def test_captions(name: str, caption: str) -> None:
    assert caption_of(name) == caption


def test_what_can_be_drawn() -> None:
    def row(hexcode: str, annotation: str, group: str, subgroups: str = "") -> dict[str, str]:
        return {"hexcode": hexcode, "annotation": annotation, "group": group, "subgroups": subgroups}

    rows = [
        row("2764-FE0F", "red heart", "smileys-emotion"),
        row("1F534", "red circle", "symbols", "geometric"),
        row("1F1E9-1F1EA", "flag: Germany", "flags"),
        row("0031-FE0F-20E3", "keycap: 1", "symbols", "keycap"),
        row("1F3FB", "light skin tone", "component"),
        row("E000", "a brand", "extras-openmoji"),
    ]
    assert captions_of(rows) == {"2764": "red heart", "1f534": "red circle"}


def test_images_of_a_datasource() -> None:
    dark = {"unified": "1F44B-1F3FF", "image": "1f44b-1f3ff.png", "has_img_google": True, "has_img_twitter": False}
    rows = [
        {"unified": "2764-FE0F", "image": "2764-fe0f.png", "has_img_google": False, "has_img_twitter": True},
        {**dark, "unified": "1F44B", "image": "1f44b.png", "skin_variations": {"1F3FF": dark}},
    ]
    assert dict(datasource_images(rows, "google")) == {"1f44b": "1f44b.png", "1f44b-1f3ff": "1f44b-1f3ff.png"}
    assert dict(datasource_images(rows, "twitter")) == {"2764": "2764-fe0f.png"}


def test_what_is_held_out_has_known_words_only() -> None:
    captions = [f"{color} {thing}" for color in ("red", "green", "blue") for thing in ("car", "bird", "cup")]
    captions += ["red red sun", "owl", "owl"]
    splits = split_captions(captions, HELD_OUT)
    assert splits == split_captions(captions[::-1], HELD_OUT)
    assert splits.keys() == set(captions)
    assert splits["owl"] == splits["red red sun"] == "train"
    words = {split: {word for c, of in splits.items() if of == split for word in c.split()} for split in SPLITS}
    assert words["test"] | words["validation"] <= words["train"]
    assert list(splits.values()).count("test") == 3
    # More than there can be: every word keeps a caption in train.
    many = split_captions(captions, {"test": 100})
    assert {word for c, of in many.items() if of == "train" for word in c.split()} == set(" ".join(captions).split())


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """Nine emoji by two designers, and a tenth that one of them draws like the first."""
    source = tmp_path / "source"
    source.mkdir()
    captions = [f"{color} {thing}" for color in ("red", "green", "blue") for thing in ("car", "bird", "cup")]
    found = []
    draw = np.random.default_rng(0)
    for designer, side in (("openmoji", SIDE), ("twitter", 64)):
        for number, caption in enumerate(captions):
            path = source / f"{designer}-{number}.png"
            # Large patches, which stay when pictures are made smaller to compare them.
            patches = draw.integers(0, 256, (4, 4, 4), dtype=np.uint8)
            Image.fromarray(patches).resize((side, side), Image.Resampling.NEAREST).save(path)
            found.append(Picture(f"1f60{number}", designer, caption, path))
    twin = source / "twin.png"
    shutil.copy(found[0].path, twin)
    return [*found, Picture("1f60a", "openmoji", "red lorry", twin)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_layout(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = tmp_path / "set"
    assert begin(folder, HELD_OUT)
    write_set(folder, pictures, HELD_OUT)
    assert not begin(folder, HELD_OUT)
    records = {split: list(open_split(folder, split)) for split in SPLITS}
    # The two that look alike are gone, the other designer's picture of the first emoji is not.
    assert sum(map(len, records.values())) == len(pictures) - 2
    captions = {split: {caption for record in some for caption in record.captions} for split, some in records.items()}
    assert (len(captions["test"]), len(captions["validation"])) == (3, 2)
    assert len(set.union(*captions.values())) == sum(map(len, captions.values())) == 9
    codes = {
        split: {json.loads(line)["emoji"] for line in (folder / split / "metadata.jsonl").read_text().splitlines()}
        for split in SPLITS
    }
    assert len(set.union(*codes.values())) == sum(map(len, codes.values())) == 9
    for some in records.values():
        for record in some:
            with Image.open(record.image) as image:
                assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    for designer in ("openmoji", *DATASOURCES):
        assert f"{designer}-*.png" in (folder / "LICENSES.txt").read_text()


def test_transparent_pictures_are_on_white_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    dot = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    dot.putpixel((0, 0), (255, 0, 0, 255))
    dot.save(path)
    square = np.asarray(on_white(path))
    margin = (SIDE - 64) // 2
    assert square[margin, margin].tolist() == [255, 0, 0]
    assert (square == 255).all(axis=2).sum() == SIDE**2 - 1
    Image.new("RGB", (64, SIDE + 1)).save(path)
    with pytest.raises(ValueError, match=r"expected at most 72x72 pixels, got 64x73"):
        on_white(path)


def test_a_killed_build_goes_on(tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "set"
    begin(whole, HELD_OUT)
    write_set(whole, pictures, HELD_OUT)

    replace = os.replace
    written = []

    def killed(source: Path, target: Path) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(target)
        replace(source, target)

    begin(folder, HELD_OUT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_set(folder, pictures, HELD_OUT)
    assert not list(folder.rglob("metadata.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in written if path.suffix == ".png"}
    assert len(before) == 5
    assert begin(folder, HELD_OUT)
    write_set(folder, pictures, HELD_OUT)
    assert content(folder) == content(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"^error: .*other: expected an empty or new folder"):
        main([str(other)])
    with pytest.raises(SystemExit, match="expected an empty or new folder"):
        main([str(other / "letter.txt")])
    assert content(other) == {"letter.txt": b"mine"}
    assert begin(tmp_path / "set", HELD_OUT)
    with pytest.raises(ValueError, match="of the same versions and settings"):
        begin(tmp_path / "set", {"test": 1})
    # Killed while the mark was written: nothing but its first part is there.
    started = tmp_path / "started"
    started.mkdir()
    (started / ".emoji.json.part").write_text("{")
    assert begin(started, HELD_OUT)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"^error: expected npm on the PATH"):
        main([str(tmp_path / "new")])
