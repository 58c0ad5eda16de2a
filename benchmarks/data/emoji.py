"""A small real data set for 64 pixels: emoji by three designers, captioned with their names.

python benchmarks/data/emoji.py DIR        135 MiB come from npm; can be killed and started again

Needs npm and Node.js. The pictures' sources, each a package of the npm registry:

openmoji                    OpenMoji, CC BY-SA 4.0; also the names. Drawings without pixels: @resvg/resvg-wasm
                            (MPL-2.0) renders them, and leaves nothing of its own in them
emoji-datasource-google     Noto Emoji by Google, Apache License 2.0
emoji-datasource-twitter    Twemoji by Twitter and other contributors, CC BY 4.0

DIR gets folders train/, validation/ and test/ of `<designer>-<code points>.png` (72x72, on white), a metadata.jsonl in
each with file_name, text, emoji (the code points: one class, whoever drew it) and designer, and LICENSES.txt. A picture
has one caption, all of an emoji's pictures the same: equal captions are how training knows that two pictures are no
negatives of each other.

The splits share no caption and so no emoji, whoever drew it, but every word of a caption of test and validation is in
train: "woman firefighter with dark skin tone" may be new, a woman, a firefighter and the skin tone are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

# Of pictures. Those of 64 get a margin, as training crops a little off the edges and emoji reach into the corners.
SIDE = 72
# Captions of the splits beside train; each has up to three pictures.
HELD_OUT = {"test": 230, "validation": 115}
SPLITS = ("train", "validation", "test")
NAMES, RENDERER = "openmoji", "@resvg/resvg-wasm"
DATASOURCES = {"google": "emoji-datasource-google", "twitter": "emoji-datasource-twitter"}
VERSIONS = {
    NAMES: "17.0.0",
    RENDERER: "2.6.2",
    DATASOURCES["google"]: "16.0.0",
    DATASOURCES["twitter"]: "16.0.0",
}
LICENSES = f"""\
Pictures of emoji with their names as captions. Changed from the originals: drawings were rendered at {SIDE} pixels,
transparent pictures laid over white and given a margin, names put into plain words. The captions are made from the
names in OpenMoji's data/openmoji.json, which are those of Unicode's CLDR.

openmoji-*.png    OpenMoji (openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0
                  https://creativecommons.org/licenses/by-sa/4.0/
                  npm package {NAMES} {VERSIONS[NAMES]}
google-*.png      Noto Emoji, Copyright Google. License: Apache License 2.0
                  https://www.apache.org/licenses/LICENSE-2.0
                  npm package {DATASOURCES["google"]} {VERSIONS[DATASOURCES["google"]]} (itself MIT, Cal Henderson)
twitter-*.png     Twemoji, Copyright Twitter, Inc and other contributors. License: CC BY 4.0
                  https://creativecommons.org/licenses/by/4.0/
                  npm package {DATASOURCES["twitter"]} {VERSIONS[DATASOURCES["twitter"]]} (itself MIT, Cal Henderson)
"""
_MARK = "emoji.json"
# Flags cannot be drawn from a country's name; components are swatches; the extras are not Unicode's.
_GROUPS = {
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
}
# The other symbols are letters, numbers, punctuation, and signs made of them.
_SYMBOLS = {"geometric", "religion", "warning", "zodiac"}
_MEMBERS = {"person", "man", "woman", "boy", "girl", "adult", "child"}
# Root of the mean squared difference, of 1, below which two pictures are taken for the same.
_SAME = 1 / 255
_RENDER = """
const fs = require("fs"), path = require("path");
const [library, source, target, list, side] = process.argv.slice(1);
const { initWasm, Resvg } = require(path.join(library, "index.js"));
(async () => {
  await initWasm(fs.readFileSync(path.join(library, "index_bg.wasm")));
  for (const name of JSON.parse(fs.readFileSync(list, "utf8"))) {
    const drawing = fs.readFileSync(path.join(source, name + ".svg"), "utf8");
    const picture = new Resvg(drawing, { fitTo: { mode: "width", value: Number(side) } });
    const pixels = picture.render();
    fs.writeFileSync(path.join(target, name + ".png"), pixels.asPng());
    pixels.free();
    picture.free();
    console.log(name);
  }
})().catch((error) => { console.error(error); process.exit(1); });
"""


class Picture(NamedTuple):
    """One designer's picture of one emoji."""

    code: str
    """The emoji's code points, see `plain_code`."""
    designer: str
    caption: str
    path: Path

    @property
    def file_name(self) -> str:
        """Its name in the data set."""
        return f"{self.designer}-{self.code}.png"


def plain_code(code: str) -> str:
    """Code points such as "2764-FE0F", in lower case and without the variation selector, which not all write."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def caption_of(name: str) -> str:
    """An emoji's name in plain words: "woman: dark skin tone, red hair" as "woman with dark skin tone and red hair".

    Args:
        name: as in CLDR: a head, and perhaps a colon and details between commas.

    Returns:
        Words of a-z and 0-9 with single spaces between them.
    """
    head, _, rest = name.partition(": ")
    details = rest.split(", ") if rest else []
    noun, _, first = head.partition(" with ")
    if "bald" in details:
        noun = f"bald {noun}"
    if "facing right" in details:
        noun = f"{noun} facing right"
    members = [detail for detail in details if detail in _MEMBERS]
    if members:
        noun = f"{noun} of {' and '.join(members)}"
    others = [detail for detail in details if detail not in {"bald", "facing right", *members}]
    properties = [first, *others] if first else others
    return _plain_words(f"{noun} with {' and '.join(properties)}" if properties else noun)


def _plain_words(text: str) -> str:
    # One spelling a word: "man's" would be two words to some vocabularies and "piñata" none.
    text = re.sub(r"[’']s\b", "", text).replace("’", "").replace("'", "")
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return " ".join(re.findall("[a-z0-9]+", "".join(letters).lower()))


def captions_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Captions by code points, of the emoji that can be drawn from their names.

    Args:
        rows: OpenMoji's data, with hexcode, annotation, group and subgroups (which is one).
    """
    return {
        plain_code(row["hexcode"]): caption_of(row["annotation"])
        for row in rows
        if row["group"] in _GROUPS or (row["group"] == "symbols" and row["subgroups"] in _SYMBOLS)
    }


def datasource_images(rows: Iterable[Mapping[str, Any]], designer: str) -> Iterator[tuple[str, str]]:
    """Code points and file name of each picture that a designer has.

    Args:
        rows: an emoji-datasource package's data: emoji, each with its `skin_variations`, if there are any.
        designer: "google" or "twitter".
    """
    for row in rows:
        for image in (row, *(row.get("skin_variations") or {}).values()):
            if image[f"has_img_{designer}"]:
                yield plain_code(image["unified"]), image["image"]


def split_captions(captions: Iterable[str], held_out: Mapping[str, int]) -> dict[str, str]:
    """The split of each caption; every word of one that is held out is in a caption of train.

    The order in which captions are held out is that of their SHA-256 digests: the same on every machine, whatever the
    order of `captions`.

    Args:
        captions: may repeat.
        held_out: how many different captions each split beside train gets; fewer if there are no more whose words are
            all known.

    Returns:
        Splits by caption.
    """
    order = sorted(set(captions), key=lambda caption: hashlib.sha256(caption.encode()).digest())
    known = Counter(word for caption in order for word in set(caption.split()))
    splits = dict.fromkeys(order, "train")
    wanted = iter([split for split, count in held_out.items() for _ in range(count)])
    for caption in order:
        words = set(caption.split())
        # Another caption of train must hold each, also after all that follow have gone.
        if all(known[word] > 1 for word in words):
            split = next(wanted, None)
            if split is None:
                break
            splits[caption] = split
            known.subtract(words)
    return splits


def on_white(path: Path) -> Image.Image:
    """The picture in the middle of a white square: RGB, SIDE x SIDE.

    Raises:
        ValueError: it is larger.
    """
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    if max(picture.size) > SIDE:
        raise ValueError(f"{path}: expected at most {SIDE}x{SIDE} pixels, got {picture.width}x{picture.height}")
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square.convert("RGB")


def telling(pictures: Sequence[Picture]) -> list[Picture]:
    """Without the pictures that look like one that their designer has for another caption.

    Such a picture does not show what its caption says (Twemoji has one sign for all families of two adults and a
    child, OpenMoji draws many a person as the man), and the same picture would be in two splits.
    """
    kept = []
    by_designer: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_designer[picture.designer].append(picture)
    for designer, own in by_designer.items():
        # Made smaller, for some differ in the smoothing of an edge alone.
        small = [
            np.asarray(on_white(picture.path).reduce(3), dtype=np.float64).ravel() / 255 - 0.5
            for picture in tqdm(own, desc=f"comparing {designer}", unit="picture")
        ]
        # As numbers, which compare faster.
        captions = np.unique([picture.caption for picture in own], return_inverse=True)[1]
        near = _squared_distances(np.stack(small)) < _SAME**2
        twins = (near & (captions[:, None] != captions)).any(axis=1)
        kept += [picture for picture, twin in zip(own, twins, strict=True) if not twin]
    return kept


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    """Mean squared differences of all pairs of N rows: [N, N], up to rounding."""
    squares = np.mean(rows**2, axis=1)
    return squares[:, None] + squares - 2 / rows.shape[1] * (rows @ rows.T)


def begin(folder: Path, held_out: Mapping[str, int] = HELD_OUT) -> bool:
    """Makes the folder this script's own.

    Returns:
        Whether there is something to do: False for a finished folder.

    Raises:
        ValueError: the folder holds something else, or a set made from other versions; it is left as it is.
    """
    settings = {"versions": VERSIONS, "side": SIDE, "held_out": dict(held_out)}
    mark = folder / _MARK
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{folder}: expected a folder of the same versions and settings as {settings}, got others")
        return not all((folder / split / "metadata.jsonl").is_file() for split in SPLITS)
    if folder.exists() and (not folder.is_dir() or any(path != _part(mark) for path in folder.iterdir())):
        raise ValueError(f"{folder}: expected an empty or new folder, or one begun by this script, got something else")
    folder.mkdir(parents=True, exist_ok=True)
    _write(mark, json.dumps(settings, indent=1).encode())
    return True


def write_set(folder: Path, pictures: Sequence[Picture], held_out: Mapping[str, int] = HELD_OUT) -> None:
    """Writes the pictures that are not there yet, and the metadata last.

    Args:
        folder: after `begin`.
        pictures: all of them.
        held_out: see `split_captions`.
    """
    _write(folder / "LICENSES.txt", LICENSES.encode())
    pictures = telling(pictures)
    splits = split_captions((picture.caption for picture in pictures), held_out)
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
    for picture in tqdm(pictures, desc="writing", unit="picture"):
        path = folder / splits[picture.caption] / picture.file_name
        if not path.is_file():
            on_white(picture.path).save(_part(path), format="png")
            os.replace(_part(path), path)
    for split in SPLITS:
        rows = [
            {
                "file_name": picture.file_name,
                "text": picture.caption,
                "emoji": picture.code,
                "designer": picture.designer,
            }
            for picture in sorted(pictures, key=lambda picture: picture.file_name)
            if splits[picture.caption] == split
        ]
        _write(folder / split / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _part(path: Path) -> Path:
    """Where a file is written before it gets its name: hidden from the readers, if the script is killed meanwhile."""
    return path.with_name(f".{path.name}.part")


def _write(path: Path, content: bytes) -> None:
    _part(path).write_bytes(content)
    os.replace(_part(path), path)


def fetch_package(name: str, folder: Path, wanted: Sequence[str] = ("",)) -> Path:
    """Downloads and unpacks a package.

    Args:
        name: one of `VERSIONS`.
        folder: an existing folder for it.
        wanted: beginnings of the paths to unpack.

    Returns:
        The package's root.

    Raises:
        RuntimeError: npm failed; the message is its own.
    """
    target = folder / re.sub("[^a-z0-9]+", "-", name)
    target.mkdir()
    _run("npm", "pack", f"{name}@{VERSIONS[name]}", "--silent", "--pack-destination", str(target))
    (archive,) = target.glob("*.tgz")
    with tarfile.open(archive) as content:
        beginnings = tuple(f"package/{beginning}" for beginning in wanted)
        members = [member for member in content.getmembers() if member.name.startswith(beginnings)]
        content.extractall(target, members=members, filter="data")
    archive.unlink()
    return target / "package"


def _run(program: str, *arguments: str) -> None:
    finished = subprocess.run([_find(program), *arguments], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} failed:\n{finished.stdout}{finished.stderr}")


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise RuntimeError(f"expected {program} on the PATH (it comes with Node.js), found none")
    return path


def render(library: Path, drawings: Path, names: Sequence[str], target: Path) -> None:
    """Renders SVG drawings as PNG pictures, SIDE pixels wide.

    Args:
        library: the package that renders.
        drawings: folder of <name>.svg.
        names: of the drawings.
        target: an existing folder for <name>.png.

    Raises:
        RuntimeError: Node.js failed; it has said why.
    """
    names_file = target / "names.json"
    names_file.write_text(json.dumps(names))
    command = [_find("node"), "-e", _RENDER, *map(str, (library, drawings, target, names_file, SIDE))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in tqdm(process.stdout, desc="rendering", unit="picture", total=len(names)):
            pass
    if process.returncode:
        raise RuntimeError(f"rendering the drawings in {drawings} failed")


def fetch_pictures(folder: Path) -> list[Picture]:
    """Downloads the packages and finds every designer's pictures of the emoji that have a caption.

    Args:
        folder: an existing folder, in which the pictures are afterwards.
    """
    fetched = {}
    wanted = {
        NAMES: ("data/openmoji.json", "color/svg/"),
        RENDERER: ("",),
        **{package: ("emoji.json", f"img/{designer}/64/") for designer, package in DATASOURCES.items()},
    }
    for name in tqdm(VERSIONS, desc="downloading", unit="package"):
        fetched[name] = fetch_package(name, folder, wanted[name])
    captions = captions_of(json.loads((fetched[NAMES] / "data/openmoji.json").read_text(encoding="utf-8")))
    found: list[tuple[str, str, Path]] = []

    drawings = fetched[NAMES] / "color/svg"
    names = sorted(path.stem for path in drawings.glob("*.svg") if plain_code(path.stem) in captions)
    rendered = folder / "rendered"
    rendered.mkdir()
    render(fetched[RENDERER], drawings, names, rendered)
    found += [(plain_code(name), "openmoji", rendered / f"{name}.png") for name in names]

    for designer, package in DATASOURCES.items():
        rows = json.loads((fetched[package] / "emoji.json").read_text(encoding="utf-8"))
        images = fetched[package] / f"img/{designer}/64"
        found += [(code, designer, images / name) for code, name in datasource_images(rows, designer)]
    return [Picture(code, designer, captions[code], path) for code, designer, path in found if code in captions]


def main(argv: Sequence[str] | None = None) -> None:
    """Begins or goes on; a finished folder is left as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new, empty, or begun before")
    folder: Path = parser.parse_args(argv).folder
    try:
        if begin(folder):
            with tempfile.TemporaryDirectory() as temporary:
                write_set(folder, fetch_pictures(Path(temporary)))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    for split in SPLITS:
        lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        emoji = {row["emoji"] for row in rows}
        captions = {row["text"] for row in rows}
        words = {word for caption in captions for word in caption.split()}
        print(f"{split}: {len(rows)} pictures of {len(emoji)} emoji, {len(captions)} captions of {len(words)} words")


if __name__ == "__main__":
    main()
