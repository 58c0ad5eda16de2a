"""What DF-GAN's discriminator gains from the convolutions of its gradient penalty (baselines/dfgan/convolution.py).

python benchmarks/cost/penalty.py                       64 pixels, cfg/scratch.yml's sizes, on a CPU or GPU
python benchmarks/cost/penalty.py --size 256 --nf 32 --batch 24

Times the discriminator's losses and their backward with torch's own convolutions and with those, in turns, in float32:
processor time on a CPU, time on the clock on a GPU. Prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.markdown import markdown_table
from vlm_plugin.baselines.dfgan import losses
from vlm_plugin.baselines.dfgan.networks import ConditionalHead, Discriminator
from vlm_plugin.training.device import choose_device

WIDTH = 256


class Bench:
    """A discriminator and a batch of noise."""

    def __init__(self, size: int, nf: int, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.discriminator = Discriminator(nf, size).to(device, memory_format=torch.channels_last)
        self.head = ConditionalHead(nf, WIDTH).to(device, memory_format=torch.channels_last)
        for block in self.discriminator.DBlocks:
            nn.init.constant_(block.gamma, 0.5)
        pictures = (2 * torch.rand(2, batch, 3, size, size, device=device) - 1).unbind()
        self.real, self.fake = (some.contiguous(memory_format=torch.channels_last) for some in pictures)
        self.sentence = torch.randn(batch, WIDTH, device=device)

    def seconds(self) -> float:
        """Of one step without Adam's."""
        start = self._now()
        terms = losses.discriminator_terms(self.discriminator, self.head, self.real, self.fake, self.sentence)
        (losses.discriminator_loss(terms.real, terms.fake, terms.mismatched) + terms.penalty).backward()
        return self._now() - start

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def measure(bench: Bench, rounds: int) -> tuple[float, float]:
    """Median seconds with torch's own convolutions, and with the penalty's; the first round is not counted."""
    own, ours = [], []
    for _ in range(rounds + 1):
        with mock.patch.object(losses, "PenaltyConvolutions", nullcontext):
            own.append(bench.seconds())
        ours.append(bench.seconds())
    return statistics.median(own[1:]), statistics.median(ours[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 64), ("nf", 16), ("batch", 32), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU where there is one)")
    arguments = parser.parse_args(argv)
    device = choose_device(arguments.device)
    bench = Bench(arguments.size, arguments.nf, arguments.batch, device)
    own, ours = measure(bench, arguments.rounds)
    cells = [torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", str(arguments.size)]
    cells += [str(arguments.nf), str(arguments.batch), f"{1000 * own:.0f}", f"{1000 * ours:.0f}", f"{ours / own:.2f}"]
    print(markdown_table(["device", "size", "nf", "batch", "torch's own, ms", "penalty's, ms", "ratio"], [cells]))


if __name__ == "__main__":
    main()
