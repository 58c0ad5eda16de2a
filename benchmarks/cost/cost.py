"""What a training step of the 256-pixel settings costs: operations, memory, and hours on a GPU. Derived, not run.

python benchmarks/cost/cost.py                                    every config; a killed run goes on where it was
python benchmarks/cost/cost.py --configs dfgan/coco --tflops 60   one of them, for a GPU that sustains 60 TFLOP/s

Takes steps of a few pictures on the CPU, plain and with the dual loss, with a matcher of full size (Inception-v3,
D = 256, 289 regions, captions of 18 words, random weights), and carries what it counts to the config's batch:

* Operations of forward and backward by the formulas of torch's FlopCounterMode: matrix products and convolutions, a
  multiplication and an addition being two. Encoding the captions, reading pictures, evaluation and the log's floors are
  left out.
* Memory: weights, gradients, Adam's states, the averaged generator and the matcher, all counted, and the larger of what
  autograd keeps for backward when the discriminators' and when the generator's backward begins. The first holds the
  generator's graph too, which the step goes on to use. What comes on top on a GPU is not in it: the kernels' working
  space, gradients of activations, the CUDA context, and the gaps in the allocator. So it is a lower bound.
* Both grow with the square of the batch B, for the local terms compare every picture with every anchor. Three batches
  determine the parabola through them, which is exact for what is counted here.
* Seconds of the processor, at `TIMED` pictures: what they tell is the ratio of the dual loss' steps to the plain ones
  between them.

benchmarks/results/cost.json holds what was counted and what was derived from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.markdown import markdown_table
from vlm_plugin import (
    TERMS,
    VLM,
    DualVLMLoss,
    Features,
    InceptionEncoder,
    LSTMTextEncoder,
    MatchingScoreBlock,
    Vocabulary,
)
from vlm_plugin.augment import RandomView
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.data.dataset import Batch
from vlm_plugin.files import write_json
from vlm_plugin.gans.config import Settings
from vlm_plugin.gans.find import baseline as find_baseline
from vlm_plugin.gans.settings import read_config
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.run_folder import versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cost.json"
TRAINERS: dict[str, type[Trainer]] = {"dfgan": DFGAN, "attngan": AttnGAN}
# Config -> pictures of its train split (CUB, COCO 2014).
PICTURES = {
    "dfgan/bird": 8855, "dfgan/coco": 82783, "attngan/bird": 8855, "attngan/paper": 8855, "attngan/coco": 82783,
}  # fmt: skip
# Settings that decide what a step costs, beside the batch: configs that agree in them are measured once.
SIZES = (
    "image_size", "nf", "z_dim", "base_size", "stages", "gf_dim", "df_dim", "condition_dim", "residual_blocks",
)  # fmt: skip
BATCHES, TIMED, ROUNDS = (2, 3, 4), 4, 3
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ARMS = ("plain", "dual")
HALVES = ("discriminator", "generator")
GIB = 2**30
STEPS = len(ARMS) * (len(PRECISIONS) * len(BATCHES) + ROUNDS)


class Operations(TorchDispatchMode):
    """Counts the floating-point operations inside this context, of backward and of double backward too.

    The formulas are those of FlopCounterMode, which itself follows modules too and fails on DF-GAN's gradient penalty:
    `torch.autograd.grad` up to a leaf.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401
        """Run the operation, and count it where it has a formula."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return result


class SavedBytes:
    """Bytes that autograd keeps for backward right now, each storage once however many operations keep it.

    Args:
        apart: tensors that are not counted, such as parameters.

    Attributes:
        live: the bytes. They fall as backward lets go of what it has used.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        self.live = 0
        self._apart = {_storage(tensor) for tensor in apart}
        self._holders: dict[int, int] = {}

    def counting(self) -> AbstractContextManager[object]:
        """Count what is saved inside this context, until it is let go of, inside or outside."""
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor)

    def take(self, tensor: Tensor) -> None:
        """One more operation keeps the tensor."""
        key = _storage(tensor)
        if key not in self._apart:
            if key not in self._holders:
                self.live += tensor.untyped_storage().nbytes()
            self._holders[key] = self._holders.get(key, 0) + 1

    def release(self, tensor: Tensor) -> None:
        """One operation fewer keeps the tensor."""
        key = _storage(tensor)
        if key not in self._apart:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self.live -= tensor.untyped_storage().nbytes()


class _Kept:
    """What autograd holds in place of a saved tensor; its end tells that autograd has let go of it."""

    def __init__(self, tensor: Tensor, saved: SavedBytes) -> None:
        # Detached, for an operation's own result would hold the operation that holds it here, and neither would end.
        self.tensor, self._saved = tensor.detach(), saved
        saved.take(tensor)

    def __del__(self) -> None:
        self._saved.release(self.tensor)


def _storage(tensor: Tensor) -> int:
    """Names a storage as long as a tensor holds it."""
    return tensor.untyped_storage().data_ptr()


def tensor_bytes(content: object) -> int:
    """Bytes of the tensors in a tensor, a module's state dict, or any nesting of mappings, lists and tuples."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(tensor_bytes, content.values()))
    return sum(map(tensor_bytes, content)) if isinstance(content, (list, tuple)) else 0


def fixed_bytes(trainer: Trainer, matcher: VLM) -> dict[str, int]:
    """Bytes that do not depend on the batch, after a step: networks, gradients, Adam's states, average and matcher."""
    state = trainer.state()
    networks = [trainer.generator, *trainer.discriminators.values()]
    return {
        "networks": sum(tensor_bytes(network.state_dict()) for network in networks),
        "gradients": tensor_bytes([p.grad for network in networks for p in network.parameters()]),
        "adam": sum(tensor_bytes(part) for name, part in state.items() if name.endswith("_adam")),
        "average": tensor_bytes(state["average"]),
        "matcher": tensor_bytes(matcher.state_dict()),
    }


class Counted(NamedTuple):
    """One step."""

    operations: int
    """Floating-point operations."""
    saved: dict[str, int]
    """Half of the step -> bytes that autograd keeps as its backward begins."""


class Workplace(NamedTuple):
    """What steps are taken with."""

    trainer: Trainer
    matcher: VLM
    losses: dict[str, DualVLMLoss | None]
    """By arm."""


def workplace(baseline: str, settings: Settings, matcher: VLM, device: str = "cpu") -> Workplace:
    """Trainer and dual loss on a device, made as `vlm_plugin.gans.begin` makes them."""
    matcher = matcher.to(device).eval().requires_grad_(False)
    trainer = TRAINERS[baseline](settings, matcher, torch.device(device), torch.float32)
    # The weights of the halves are those of a run whose ramps have ended; they cost nothing.
    dual = DualVLMLoss(
        matcher,
        lambda_vvm=settings.vlm.lambda_vvm,
        lambda_vlm=settings.vlm.lambda_vlm,
        augment=RandomView() if settings.vlm.augment else None,
        terms=settings.vlm.terms or TERMS,
    )
    return Workplace(trainer, matcher, {"plain": None, "dual": dual})


def random_batch(place: Workplace, batch: int) -> tuple[Batch, Features]:
    """Noise for pictures, and captions as long as they can be: of `max_words` random words."""
    size, words, device = place.trainer.image_size, place.matcher.max_words, place.trainer.device
    images = (2 * torch.rand(batch, 3, size, size) - 1).to(device, memory_format=torch.channels_last)
    numbers = torch.arange(batch)
    tokens = torch.randint(1, len(place.matcher.vocabulary), (batch, words), device=device)
    with torch.no_grad():
        text = place.matcher.encode_tokens(tokens, torch.full((batch,), words))
    names = [str(number) for number in range(batch)]
    return Batch(images, names, numbers, numbers, names, numbers), text


def count_step(place: Workplace, arm: str, batch: int, dtype: torch.dtype) -> Counted:
    """Take one step and count its operations and the bytes saved for either backward.

    Args:
        place: what to take it with.
        arm: one of `ARMS`.
        batch: pictures.
        dtype: autocast type; the operations do not depend on it.
    """
    trainer = place.trainer
    networks = [place.matcher, trainer.average, trainer.generator, *trainer.discriminators.values()]
    saved = SavedBytes(tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    halves: dict[str, int] = {}

    def noting(half: str, update: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def wrapped(loss: Tensor) -> None:
            halves[half] = saved.live
            update(loss)

        return wrapped

    inputs = random_batch(place, batch)
    trainer.dtype = dtype
    # An instance's attribute goes before the class' method, and its removal uncovers that.
    trainer.update_discriminators = noting("discriminator", trainer.update_discriminators)
    trainer.update_generator = noting("generator", trainer.update_generator)
    try:
        with Operations() as counter, saved.counting():
            trainer.step(*inputs, 0, place.losses[arm])
    finally:
        trainer.dtype = torch.float32
        del trainer.update_discriminators, trainer.update_generator
    return Counted(counter.total, halves)


def time_step(place: Workplace, arm: str, batch: int) -> float:
    """Seconds of processor time, of all threads together, of one float32 step.

    By the clock on the wall, other work on the machine would be measured too.
    """
    inputs = random_batch(place, batch)
    start = time.process_time()
    place.trainer.step(*inputs, 0, place.losses[arm])
    return time.process_time() - start


def measure(place: Workplace, advance: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Count and time the steps of both arms.

    Args:
        place: what to take them with.
        advance: called after each of `STEPS` steps.

    Returns:
        Plain values: `operations[arm][batch]`, `saved[precision][arm][half][batch]` and `fixed[part]` in bytes, and
        `seconds[arm]`, a list (see `time_step`).
    """
    result: dict[str, Any] = {"operations": {}, "saved": {}, "seconds": {arm: [] for arm in ARMS}}
    for precision, dtype in PRECISIONS.items():
        result["saved"][precision] = {}
        for arm in ARMS:
            counted = {}
            for batch in BATCHES:
                counted[batch] = count_step(place, arm, batch, dtype)
                advance()
            by_half = {half: {str(b): c.saved[half] for b, c in counted.items()} for half in HALVES}
            result["saved"][precision][arm] = by_half
            if dtype == torch.float32:
                result["operations"][arm] = {str(b): c.operations for b, c in counted.items()}
    for _ in range(ROUNDS):
        # In turns, so that what slows the machine slows both.
        for arm in ARMS:
            result["seconds"][arm].append(time_step(place, arm, TIMED))
            advance()
    return result | {"fixed": fixed_bytes(place.trainer, place.matcher)}


def full_matcher() -> VLM:
    """A matcher of full size with random weights; nothing is downloaded."""
    image_encoder = InceptionEncoder()
    for module in image_encoder.modules():
        # With the default weights and no batch statistics the signal all but vanishes on its way through the layers,
        # and numbers near the smallest ones are slow on a CPU.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    # As many words as CUB's published vocabulary; COCO's, five times as large, would add 25 MiB.
    vocabulary = Vocabulary(["<end>", *(f"word{number}" for number in range(1, 5450))], unknown=None)
    return VLM(image_encoder, LSTMTextEncoder(len(vocabulary)), vocabulary, MatchingScoreBlock())


def extrapolated(points: Mapping[str, int] | Mapping[int, int], batch: int) -> float:
    """The value at `batch` of the polynomial of least degree through the points (Lagrange's form, exact).

    Args:
        points: batch -> value; three of them give a parabola.
        batch: where it is asked for.
    """
    known = {int(x): y for x, y in points.items()}
    total = Fraction(0)
    for x, y in known.items():
        weight = Fraction(1)
        for other in known:
            if other != x:
                weight *= Fraction(batch - other, x - other)
        total += weight * y
    return float(total)


def hours(steps: int, operations: float, tflops: float) -> float:
    """Hours of `steps` steps of so many operations at `tflops` times 10^12 operations a second."""
    return steps * operations / (tflops * 1e12) / 3600


def derive(measured: Mapping[str, Any], batch: int, steps: int, pictures: int) -> dict[str, Any]:
    """A config's numbers out of what `measure` gave.

    Args:
        measured: from `measure`.
        batch: the config's batch.
        steps: steps that it asks for.
        pictures: of its train split.

    Returns:
        `batch`, `steps`, `epochs`, `seconds_ratio` (dual / plain, medians), and by arm `operations` of a step and
        `bytes` by precision.
    """
    fixed = sum(measured["fixed"].values())
    middle = {arm: statistics.median(measured["seconds"][arm]) for arm in ARMS}
    return {
        "batch": batch,
        "steps": steps,
        "epochs": steps * batch / pictures,
        "seconds_ratio": middle["dual"] / middle["plain"],
        "operations": {arm: extrapolated(measured["operations"][arm], batch) for arm in ARMS},
        "bytes": {
            precision: {
                arm: fixed + max(extrapolated(saved[arm][half], batch) for half in HALVES) for arm in ARMS
            }
            for precision, saved in measured["saved"].items()
        },
    }  # fmt: skip


def table(derived: Mapping[str, Mapping[str, Any]], tflops: float) -> str:
    """Derived numbers as Markdown; pairs are plain / with the dual loss."""
    head = [
        "config", "batch", "steps", "epochs", "GFLOP a step", f"CPU seconds, dual / plain (batch {TIMED})",
        "GiB, float32", "GiB, bfloat16", f"GPU hours at {tflops:g} TFLOP/s",
    ]  # fmt: skip
    rows = []
    for name, row in derived.items():
        memory = [" / ".join(f"{row['bytes'][p][arm] / GIB:.1f}" for arm in ARMS) for p in PRECISIONS]
        spent = " / ".join(f"{hours(row['steps'], row['operations'][arm], tflops):,.0f}" for arm in ARMS)
        operations = " / ".join(f"{row['operations'][arm] / 1e9:,.0f}" for arm in ARMS)
        rows.append([
            name, str(row["batch"]), f"{row['steps']:,}", f"{row['epochs']:.0f}", operations,
            f"{row['seconds_ratio']:.2f}", *memory, spent,
        ])  # fmt: skip
    notes = (
        "Derived, not run. Pairs are plain / with the dual loss. Counted on steps of "
        f"{', '.join(map(str, BATCHES))} pictures and carried to the config's batch. GiB are a lower bound, without "
        "the kernels' working space and the CUDA context; bfloat16's are those of autocast on the CPU, whose list of "
        f"operations differs a little from the GPU's. {tflops:g} TFLOP/s sustained is an assumption (--tflops), the "
        "same for both arms; gpu_steps.py measures."
    )
    return f"{markdown_table(head, rows)}\n\n{notes}"


def sizes_of(settings: Settings) -> dict[str, Any]:
    """The settings that decide what a step costs, beside the batch."""
    return {name: getattr(settings, name) for name in SIZES if hasattr(settings, name)} | {
        name: getattr(settings.vlm, name) for name in ("augment", "terms")
    }


def _found(measurements: Sequence[dict[str, Any]], baseline: str, sizes: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured of these sizes already."""
    same = (m for m in measurements if (m["baseline"], m["sizes"]) == (baseline, sizes))
    return next(same, None)


def settings_of(names: Sequence[str]) -> Iterator[tuple[str, str, Settings]]:
    """(config, baseline, settings)."""
    for name in names:
        baseline, config = name.split("/")
        found = find_baseline(baseline)
        yield name, baseline, read_config(found.folder / "cfg" / f"{config}.yml", found).settings


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what has no result yet, derive, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=PICTURES, default=list(PICTURES))
    speed_help = "10^12 operations a second that a GPU is assumed to sustain (default: 20)"
    parser.add_argument("--tflops", type=float, default=20.0, help=speed_help)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON to go on with; delete it to begin anew")
    arguments = parser.parse_args(argv)
    if not arguments.tflops > 0:
        parser.error(f"--tflops: expected a number above 0, got {arguments.tflops:g}")
    path = arguments.results
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"measurements": [], "configs": {}}
    measurements, configs = content["measurements"], list(settings_of(arguments.configs))
    todo = {str((b, sizes_of(s))) for _, b, s in configs if _found(measurements, b, sizes_of(s)) is None}
    with progress(range(STEPS * len(todo)), desc="steps") as bar:
        for name, baseline, settings in configs:
            sizes = sizes_of(settings)
            measured = _found(measurements, baseline, sizes)
            if measured is None:
                torch.manual_seed(0)
                measured = {
                    "baseline": baseline, "sizes": sizes, "versions": versions(),
                    "threads": torch.get_num_threads(),
                    **measure(workplace(baseline, settings, full_matcher()), bar.update),
                }  # fmt: skip
                measurements.append(measured)
            content["configs"][name] = derive(measured, settings.batch, settings.steps, PICTURES[name])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(content, path)
    print(table({name: content["configs"][name] for name in arguments.configs}, arguments.tflops))


if __name__ == "__main__":
    main()
