"""`python benchmarks/assets/assets.py`: what the packaged matchers and judge do on 1,000 new test birds."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vlm_plugin import VLM
from vlm_plugin.data import BirdTruth, make_birds, open_split
from vlm_plugin.evaluation.judge import Judge, held_out_accuracy
from vlm_plugin.pretraining.evaluator import Evaluator


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, measure, print."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = make_birds(Path(folder) / "birds", 0, 0, 1000)
        records, truth = open_split(root, "test"), BirdTruth(root)
        evaluate = Evaluator(records, 64, truth, torch.device("cpu"))
        results = {name: evaluate(VLM.load(f"birds{name}.vlm.pt")) for name in ("", ".evaluator")}
        accuracy = held_out_accuracy(Judge.load(), records, truth, torch.device("cpu"))
    print(f"a matcher that knows every truth: R@1 {evaluate.ceiling():.3f}")
    for matcher, values in results.items():
        for name, value in values.items():
            print(f"birds{matcher + '.vlm.pt':18s} {name:16s} {value:.3f}")
    for name, value in accuracy.items():
        print(f"{'birds.judge.pt':23s} {name:16s} {value:.3f}")


if __name__ == "__main__":
    main()
