"""`python benchmarks/data/open_coco.py`: opening captions of COCO's size, packed and as plain objects (Linux only).

Makes the captions of 120,000 pictures, five each, without the pictures. Prints how long opening them takes, how much
memory the records hold, and how much each of four forked loader processes adds by reading 20,000 of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vlm_plugin.data import Record, open_split
from vlm_plugin.data.layouts.coco import read_coco

PICTURES, CAPTIONS, LOADERS, TOUCHED = 120_000, 5, 4, 20_000
MIB = 2**20
WORDS = ["a", "man", "woman", "two", "dogs", "red", "blue", "standing", "on", "in", "the", "street", "beach", "near"]


def make_captions(root: Path) -> int:
    """Writes a train split of COCO's form and returns the file's bytes."""
    draw = random.Random(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    path = root / "annotations/captions_train2017.json"
    images = [
        {
            "license": 3,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "id": number,
        }
        for number in draw.sample(range(600_000), PICTURES)
    ]
    annotations = [
        {"image_id": image["id"], "id": number, "caption": " ".join(draw.choices(WORDS, k=draw.randint(8, 14))) + "."}
        for number, image in enumerate(images * CAPTIONS)
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    # With a val file beside it the train split is read whole, as COCO's is, and no test split is made of it.
    path.with_name("captions_val2017.json").write_text('{"images": [], "annotations": []}')
    return path.stat().st_size


def memory(field: str) -> int:
    """Bytes of this process, as the kernel counts them."""
    found = re.search(rf"^{field}:\s+([0-9]+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def load(records: Sequence[Record], seed: int, sender: Connection) -> None:
    """What a loader process does with records; sends the private bytes that doing so adds."""
    order = random.Random(seed).sample(range(len(records)), TOUCHED)
    before = memory("Private_Dirty")
    letters = 0
    for index in order:
        record = records[index]
        letters += len(record.key) + len(record.captions[index % len(record.captions)]) + len(record.image.name)
    sender.send(memory("Private_Dirty") - before)


def measure(root: Path, packed: bool, sender: Connection) -> None:
    """Opens the split and sends seconds, bytes held, bytes at the peak, and bytes that a loader adds on average."""
    gc.collect()
    before, start = memory("Rss"), time.perf_counter()
    records = open_split(root, "train") if packed else list(read_coco(root, "train"))
    seconds = time.perf_counter() - start
    gc.collect()
    held = memory("Rss") - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    fork = multiprocessing.get_context("fork")
    added = []
    for seed in range(LOADERS):
        receiver, child_sender = fork.Pipe(duplex=False)
        process = fork.Process(target=load, args=(records, seed, child_sender))
        process.start()
        child_sender.close()
        added.append(receiver.recv())
        process.join()
    sender.send((seconds, held, peak, sum(added) / LOADERS))


def main(argv: Sequence[str] | None = None) -> None:
    """Make, measure each form in a fresh process, print."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    spawn = multiprocessing.get_context("spawn")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = make_captions(root)
        print(f"{PICTURES} pictures, {PICTURES * CAPTIONS} captions, {size / MIB:.0f} MiB of JSON")
        print("            seconds   held MiB   peak MiB   MiB added by a loader")
        for name, packed in {"Records": True, "list": False}.items():
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=measure, args=(root, packed, sender))
            process.start()
            sender.close()
            results[name] = seconds, held, peak, added = receiver.recv()
            process.join()
            print(f"{name:10s} {seconds:8.2f} {held / MIB:10.1f} {peak / MIB:10.1f} {added / MIB:10.2f}")
    ratios = [plain / packed for plain, packed in zip(results["list"], results["Records"], strict=True)]
    print(f"list/Records {ratios[0]:6.2f} {ratios[1]:10.1f} {ratios[2]:10.2f} {ratios[3]:10.1f}")


if __name__ == "__main__":
    main()
