"""Plans a set of synthetic birds and writes it in the layout that AttnGAN's users have for CUB-200-2011."""

from __future__ import annotations

import json
import math
import pickle
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.data.birds.attributes import ATTRIBUTES, ATTRIBUTES_FILE, SPLITS, class_values, first_classes
from vlm_plugin.data.birds.captions import draw_named, sentence
from vlm_plugin.data.birds.drawing import draw_bird
from vlm_plugin.files import writing_folder

PICTURES_PER_CLASS = 10
CAPTIONS_PER_PICTURE = 10
# Raised whenever the same arguments would give other bytes, so that an old folder is not mistaken for a new one.
_VERSION = 1
_ARGUMENTS_FILE = "birds.json"
# What the main job draws when no data is given; the packaged files were made from more birds of the same kind.
BIRDS = {"train": 2000, "validation": 200, "test": 1000, "size": 64, "seed": 0}
# Not data/birds, where the originals have CUB.
BIRDS_FOLDER = Path("data/synthetic-birds")


class Bird(NamedTuple):
    """One picture to be: everything `make_birds` writes about it follows from this."""

    key: str
    class_id: int
    values: dict[str, str]
    captions: tuple[str, ...]
    named: tuple[tuple[str, ...], ...]
    seed: int


def plan_birds(split: str, count: int, seed: int = 0) -> list[Bird]:
    """The pictures of a split, undrawn: `draw_bird(bird.values, size, bird.seed)` draws one.

    The first pictures of a large split are those of a small one.

    Args:
        split: "train", "validation" or "test".
        count: number of pictures, 0 or more; there are ten to a class.
        seed: picks classes, poses and sentences.

    Raises:
        ValueError: an unknown split, a negative count, or more pictures than the split has classes for.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    # About 39,000, 4,900 and 4,900 classes exist; the bound leaves the random draw of classes quick.
    limit = PICTURES_PER_CLASS * (30_000 if split == "train" else 4_000)
    if not 0 <= count <= limit:
        raise ValueError(f"{split}: expected 0 to {limit} pictures, got {count}")
    birds = []
    for number in first_classes(split, math.ceil(count / PICTURES_PER_CLASS), seed):
        species = class_values(number)
        name = f"{species['crown'].title()}_crowned_{species['wings'].title()}_winged"
        rng = random.Random(f"birds/class/{seed}/{number}")
        # Every background comes up twice among the ten pictures: no class can be told from its background.
        backgrounds = list(ATTRIBUTES["background"]) * (PICTURES_PER_CLASS // len(ATTRIBUTES["background"]))
        rng.shuffle(backgrounds)
        for index, background in enumerate(backgrounds[: count - len(birds)]):
            values = {**species, "background": background}
            sentences: dict[str, tuple[str, ...]] = {}
            while len(sentences) < CAPTIONS_PER_PICTURE:
                named = draw_named(rng)
                sentences.setdefault(sentence({key: values[key] for key in named}, rng.getrandbits(32)), named)
            birds.append(
                Bird(
                    key=f"{number:05d}.{name}/{name}_{number:05d}_{index:02d}",
                    class_id=number,
                    values=values,
                    captions=tuple(sentences),
                    named=tuple(sentences.values()),
                    seed=rng.getrandbits(63),
                )
            )
    return birds


def make_birds(
    root: str | Path,
    train: int,
    validation: int,
    test: int,
    size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Writes a set of synthetic birds in the layout that AttnGAN's users have for CUB-200-2011.

    Everything goes into a temporary folder beside `root` that is renamed at the end, so a killed run leaves no
    half-made set. If `root` already holds the complete set for the same arguments, nothing is done.

    Args:
        root: the folder to make; it may exist if it is empty.
        train, validation, test: number of pictures of each split.
        size: side of the pictures in pixels, at least 16.
        seed: picks classes, poses and sentences; equal arguments give equal bytes on one machine.
        progress: shows a counter on standard error.

    Returns:
        `root` as a path.

    Raises:
        ValueError: a bad count or size, or `root` holds anything else.
    """
    root = Path(root)
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    counts = {"train": train, "validation": validation, "test": test}
    arguments = {"version": _VERSION, **counts, "size": size, "seed": seed}
    if _already_made(root, arguments):
        return root
    plans = {split: plan_birds(split, count, seed) for split, count in counts.items()}
    if not any(plans.values()):
        raise ValueError("train, validation, test: expected at least one picture in all, got 0")

    try:
        with writing_folder(root) as folder:
            _write_set(folder, plans, size, arguments, progress)
    except OSError:
        # Two processes (the ranks of one job, say) may make the same set at once: the second finds it made.
        if not _already_made(root, arguments):
            raise
    return root


def _already_made(root: Path, arguments: Mapping[str, int]) -> bool:
    """Whether `root` holds this very set; False if it is absent or empty."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder to write the birds into, got a file")
    if not any(root.iterdir()):
        return False
    marker = root / _ARGUMENTS_FILE
    if not marker.is_file():
        raise ValueError(
            f"{root}: expected an empty or absent folder, got one with other files and no {_ARGUMENTS_FILE}"
        )
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        keys = list(json.loads((root / ATTRIBUTES_FILE).read_text(encoding="utf-8"))["pictures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{root}: expected a complete set of birds, got one that cannot be read ({error})") from error
    if found != dict(arguments):
        raise ValueError(f"{root}: expected the birds made with {dict(arguments)}, got those made with {found}")
    files = [root / f"CUB_200_2011/images/{key}.jpg" for key in keys] + [root / f"text/{key}.txt" for key in keys]
    splits = [split for split in SPLITS if arguments[split]]
    files += [root / split / name for split in splits for name in ("filenames.pickle", "class_info.pickle")]
    files += [root / "CUB_200_2011" / name for name in ("images.txt", "bounding_boxes.txt")]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise ValueError(f"{root}: expected a complete set of birds, got one without {missing}")
    return True


def _write_set(
    root: Path, plans: Mapping[str, Sequence[Bird]], size: int, arguments: Mapping[str, int], progress: bool
) -> None:
    """Fill a new folder. Nobody looks into it yet, so the files are written one by one."""

    def write(name: str, text: str) -> None:
        (root / name).write_text(text, encoding="utf-8", newline="\n")

    birds = [bird for plan in plans.values() for bird in plan]
    for folder in dict.fromkeys(bird.key.split("/")[0] for bird in birds):
        (root / "CUB_200_2011/images" / folder).mkdir(parents=True)
        (root / "text" / folder).mkdir(parents=True)
    for done, bird in enumerate(birds, 1):
        picture = draw_bird(bird.values, size, bird.seed)
        picture.save(root / f"CUB_200_2011/images/{bird.key}.jpg", quality=95, subsampling=0)
        write(f"text/{bird.key}.txt", "\n".join(bird.captions) + "\n")
        if progress and (done % 50 == 0 or done == len(birds)):
            end = "\n" if done == len(birds) else ""
            print(f"\rbirds: {done} of {len(birds)}", end=end, file=sys.stderr, flush=True)
    write("CUB_200_2011/images.txt", "".join(f"{number} {bird.key}.jpg\n" for number, bird in enumerate(birds, 1)))
    # The box is the whole picture: readers crop to the box, and a tight one would normalise the attribute "size" away.
    boxes = (f"{number} 0.0 0.0 {float(size)} {float(size)}\n" for number in range(1, len(birds) + 1))
    write("CUB_200_2011/bounding_boxes.txt", "".join(boxes))
    for split, plan in plans.items():
        if not plan:
            continue
        (root / split).mkdir()
        lists = {"filenames": [bird.key for bird in plan], "class_info": [bird.class_id for bird in plan]}
        for name, content in lists.items():
            # The original repositories' Python 2 reads protocol 2.
            (root / split / f"{name}.pickle").write_bytes(pickle.dumps(content, protocol=2))
    truth = {
        "attributes": {name: list(choices) for name, choices in ATTRIBUTES.items()},
        "pictures": {bird.key: bird.values for bird in birds},
        "captions": {bird.key: [list(named) for named in bird.named] for bird in birds},
    }
    write(ATTRIBUTES_FILE, json.dumps(truth) + "\n")
    write(_ARGUMENTS_FILE, json.dumps(dict(arguments)) + "\n")
