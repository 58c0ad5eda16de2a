"""The folder of an evaluation's results: earlier ones are kept, and what is cut off leaves them as they are."""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from vlm_plugin.data.images import to_image


def keep_results(folder: Path) -> None:
    """Put earlier results aside under the next number that is free for all of them: what has one number is one's.

    It is called when the new ones are there to be written: what ends before leaves the earlier ones as they are.
    """
    paths = [folder / name for name in ("evaluation.json", "evaluation.md", "report.pt", "report.html", "pictures")]
    # Pictures without captions.csv were not written here: they may be somebody's data.
    there = [path for path in paths if path.is_file() or (path / "captions.csv").is_file()]
    if not there:
        return
    number = 1
    while any(path.with_stem(f"{path.stem}-{number}").exists() for path in paths):
        number += 1
    for path in there:
        path.rename(path.with_stem(f"{path.stem}-{number}"))
    print(f"{folder}: earlier results are kept as evaluation-{number}.json and so on", flush=True)


def check_pictures(folder: Path) -> None:
    """Refuse to write pictures where somebody else's are; those of an earlier evaluation make room.

    Raises:
        FileExistsError: `folder` has pictures that were not written here.
    """
    pictures = folder / "pictures"
    if pictures.exists() and not (pictures / "captions.csv").is_file():
        raise FileExistsError(
            f"{pictures}: expected no such folder, or that of an earlier evaluation, got one without captions.csv: "
            "move it away, or name another place with --out"
        )


@contextlib.contextmanager
def new_results(folder: Path, pictures: bool) -> Iterator[Path | None]:
    """A place for the pictures of an evaluation under way; when the block ends well, earlier results make room.

    Args:
        folder: of the results.
        pictures: whether there are to be pictures.

    Yields:
        A folder that does not exist yet, of which `folder / "pictures"` is made in the end; None without pictures.
    """
    if not pictures:
        yield None
        keep_results(folder)
        return
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as unfinished:
        fresh = Path(unfinished) / "pictures"
        yield fresh
        keep_results(folder)
        fresh.rename(folder / "pictures")


def written(batches: Iterable[Tensor], folder: Path, captions: Sequence[str]) -> Iterator[Tensor]:
    """Pass pictures on, and write each into a new folder, with a captions.csv that `vlm-plugin score` reads.

    Args:
        batches: `(B, 3, S, S)` in [-1, 1].
        folder: made here.
        captions: one for each picture.
    """
    folder.mkdir()
    # Captions may hold lone surrogates, as may anything out of JSON.
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with (folder / "captions.csv").open("w", **how) as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "caption"))
        number = 0
        for batch in batches:
            for picture in batch:
                name = f"{number:06d}.png"
                to_image(picture).save(folder / name)
                rows.writerow((name, captions[number]))
                number += 1
            yield batch
