"""Steps that are no numbers: noticed before an optimizer acts on them, passed over, and counted.

An update whose loss, gradient or running statistics hold NaN or infinity on any rank is passed over on every rank:
weights and the optimizer's moments stay as they are, and running statistics as they were before the step. So are the
later updates of that step. On a GPU all of this is decided there: the host reads whether a step was bad when the next
one is under way, and waits for nothing.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_plugin import distributed
from vlm_plugin.checks import is_integer
from vlm_plugin.data.dataset import Batch
from vlm_plugin.files import write_file
from vlm_plugin.training.ranks import average_gradients

MAX_BAD_STEPS = 10  # in a row, before a training stops
BAD_BATCH = "bad_batch.pt"
# What errors of torch and of this package say where NaN or infinity came up.
_NOT_FINITE = re.compile(r"\b(nan|inf|infinity|infinite|((non-?)?finite))\b", re.IGNORECASE)
_GRADIENT = "the gradient of "
_NAMED = 6  # names in a message


class NotFiniteError(ValueError):
    """A step ran into NaN or infinity on one of several ranks, which left the others waiting."""


class Mark(NamedTuple):
    """What was looked at in a step."""

    names: tuple[str, ...]
    """What the numbers are called."""
    bad: Tensor
    """`(len(names),)` bool: which are NaN or infinite."""


class Report(NamedTuple):
    """What a guard found in a step; both parts lie on the device."""

    bad: Tensor
    """`()` bool: something was NaN or infinite, here or on another rank."""
    marks: tuple[Mark, ...]
    """Where: of this rank alone, but for the gradients, which are averaged."""

    def names(self) -> list[str]:
        """What was NaN or infinite: pictures and terms or, where these are finite, what came of them."""
        found = [[n for n, bad in zip(m.names, m.bad.tolist(), strict=True) if bad] for m in self.marks]
        return next(filter(None, found), [])


class Guard:
    """Looks at every update of a step before the optimizer takes it.

    Args:
        device: where the training is.
        networks: whatever has running statistics, by name.

    Attributes:
        bad: `()` bool on the device: something of this step was NaN or infinite so far.
    """

    def __init__(self, device: torch.device, networks: Mapping[str, nn.Module]) -> None:
        self.device, self.networks = device, networks
        self._start()

    def begin(self, *pictures: Tensor) -> list[Tensor]:
        """Begin a step.

        Args:
            *pictures: what it is made with.

        Returns:
            The same, with 0 in the place of NaN and infinity: a bad picture ends no step halfway on one rank alone.
        """
        self._start()
        finite = [part.isfinite() for part in pictures]
        bad = torch.stack([~part.all() for part in finite]).any() if finite else torch.tensor(False, device="cpu")
        self.bad = bad.to(self.device, non_blocking=True)
        self._input = Mark(("pictures",), self.bad[None])
        self._kept = {name: _flat(network) for name, network in self.networks.items()}
        return [torch.where(where, part, 0.0) for where, part in zip(finite, pictures, strict=True)]

    def note(self, values: Mapping[str, Tensor]) -> None:
        """Look at the terms of a step as well, by name."""
        if values:
            bad = torch.stack([~value.detach().isfinite().all() for value in values.values()]).to(self.device)
            self._values.append(Mark(tuple(values), bad))
            self.bad = self.bad | bad.any()

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        loss: Tensor,
        trained: Mapping[str, nn.Module],
        clip: float | None = None,
    ) -> None:
        """One update, or none where something is NaN or infinite.

        Args:
            optimizer: of `optimizer_for`.
            loss: what to descend.
            trained: the networks that it trains, by their names among `networks`.
            clip: norm that the gradient is cut to.
        """
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        named = {
            f"{network}.{name}": parameter
            for network, module in trained.items()
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }
        now = {name: _flat(network) for name, network in self.networks.items()}
        statistics = [flat for flats in now.values() for flat in flats.values() if flat.is_floating_point()]
        parts = [loss.detach(), *statistics]
        here = torch.stack([self.bad, *(~part.isfinite().all() for part in parts)])
        anywhere = average_gradients(named.values(), here.float()) > 0
        # The norm is infinite, too, where Adam's second moment would be.
        norms = torch.stack(torch._foreach_norm([parameter.grad for parameter in named.values()]))
        of = " and ".join(trained) if len(trained) < 3 else "discriminators"
        self._updates += [
            Mark((f"the loss of {of}",), here[1:2]),
            Mark(tuple(f"{_GRADIENT}{name}" for name in named), ~norms.isfinite()),
            Mark((f"running statistics in the step of {of}",), here[2:].any()[None]),
        ]
        self.bad = anywhere.any() | ~norms.isfinite().all()
        # Of the others a graph may still wait for its backward, which refuses statistics that were changed meanwhile.
        self._trained |= trained.keys()
        self._settle({name: flat for name, flat in now.items() if name in self._trained}, trained.keys())
        if clip is not None:
            nn.utils.clip_grad_norm_(list(named.values()), clip)
        _step_unless(self.bad, optimizer)

    def abandon(self, error: Exception) -> None:
        """End a step halfway, where an error came of NaN or infinity.

        Raises:
            NotFiniteError: there are other ranks, which wait for this one in the middle of the step.
            Exception: the error itself, where it came of something else.
        """
        said = " ".join(str(error).split())
        of_numbers = isinstance(error, (ValueError, ArithmeticError)) and bool(self.bad)
        if not (of_numbers or says_not_finite(error)):
            raise error
        if distributed.world_size() > 1:
            raise NotFiniteError(said) from error
        self.bad = torch.ones_like(self.bad)
        self._values.append(Mark((said,), self.bad[None]))
        self._settle({name: _flat(network) for name, network in self.networks.items()}, ())

    def report(self) -> Report:
        """What was found in the step that is over."""
        return Report(self.bad, (self._input, *self._values, *self._updates))

    def _start(self) -> None:
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)
        self._input = Mark(("pictures",), self.bad[None])
        self._values: list[Mark] = []
        self._updates: list[Mark] = []
        self._kept: dict[str, dict[torch.dtype, Tensor]] = {}
        self._trained: set[str] = set()

    def _settle(self, now: Mapping[str, dict[torch.dtype, Tensor]], trained: Collection[str]) -> None:
        """Put statistics back to what was kept, where the step is bad; keep those of `trained` from now on else.

        Args:
            now: network -> `_flat` of it.
            trained: names of those that were updated just now.
        """
        if self.device.type == "cpu" and not self.bad:
            self._kept |= {name: now[name] for name in trained}
            return
        for name, flats in now.items():
            buffers = _buffers(self.networks[name])
            for dtype, flat in flats.items():
                right = torch.where(self.bad, self._kept[name][dtype], flat)
                parts = right.split([buffer.numel() for buffer in buffers[dtype]])
                for buffer, part in zip(buffers[dtype], parts, strict=True):
                    buffer.copy_(part.view_as(buffer))
                if name in trained:
                    self._kept[name][dtype] = right


def _buffers(network: nn.Module) -> dict[torch.dtype, list[Tensor]]:
    found: dict[torch.dtype, list[Tensor]] = {}
    for buffer in network.buffers():
        found.setdefault(buffer.dtype, []).append(buffer)
    return found


@torch.no_grad()
def _flat(network: nn.Module) -> dict[torch.dtype, Tensor]:
    """A copy of a network's buffers: a tensor of each dtype."""
    return {dtype: torch.cat([b.flatten() for b in buffers]) for dtype, buffers in _buffers(network).items()}


# ---------------------------------------------------------------------------------------------------------- optimizers


def optimizer_for(device: torch.device) -> dict[str, Any]:
    """Options of an Adam that a guard updates: on a GPU the one that can pass over a step without the host."""
    return {"fused": True} if device.type == "cuda" else {}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take back an optimizer's state; what computes its steps is up to this device, and not to the saved one's."""
    fused = optimizer.param_groups[0]["fused"]
    groups = [{**group, "fused": fused} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer, or none."""
    if optimizer.param_groups[0].get("fused"):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            # The fused kernel takes gradients of its weights' strides alone.
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()
    elif bad:
        optimizer.zero_grad(set_to_none=True)  # without gradients a step does nothing
    optimizer.step()


# ------------------------------------------------------------------------------------------------------------ counting


def check_max_bad_steps(given: int | None, default: int) -> int:
    """The number that was given, from 1 up, or the default where none was.

    Raises:
        ValueError: less than 1.
    """
    most = default if given is None else given
    if not is_integer(most, 1):
        raise ValueError(f"--max-bad-steps: expected a whole number from 1 up, got {most!r}")
    return most


class Later:
    """A flag on the device that the host reads later, without a wait for what it has asked of the device since."""

    def __init__(self, flag: Tensor) -> None:
        self._flag, self._copied = flag, None
        if flag.device.type == "cuda":
            self._flag = torch.empty(flag.shape, dtype=flag.dtype, device="cpu", pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> bool:
        """The flag, as soon as the device has come to it."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)


class Taken(NamedTuple):
    """A step that was taken, or passed over."""

    step: int
    """Its number."""
    report: Report
    """What the guard found."""
    content: Any
    """What it was made with, and its losses."""


class BadSteps:
    """Counts the steps that were passed over.

    Args:
        most: as many in a row end the training.
        counts: of `counts`, to go on from them.

    Attributes:
        total: all of them, also before the run was resumed.
        in_a_row: those since the last sound step.
    """

    def __init__(self, most: int, counts: Mapping[str, int] | None = None) -> None:
        self.most = most
        counts = {"total": 0, "in_a_row": 0} if counts is None else counts
        self.total, self.in_a_row = int(counts["total"]), int(counts["in_a_row"])
        self._waiting: deque[tuple[Taken, Later]] = deque()

    @property
    def too_many(self) -> bool:
        """Whether the training has to end."""
        return self.in_a_row >= self.most

    def counts(self) -> dict[str, dict[str, int]]:
        """What a resumed run counts on from: an entry of its file, or none before the first bad step."""
        return {"bad_steps": {"total": self.total, "in_a_row": self.in_a_row}} if self.total else {}

    def look(self, taken: Taken, bad: Tensor, *, now: bool) -> Iterator[Taken]:
        """The bad ones of the steps whose flags are read, each as soon as it is counted.

        Args:
            taken: the step that was taken last.
            bad: `()` bool: whether it was bad, on any rank.
            now: read its flag, too; False leaves it until the next one on a GPU, which it would wait for.
        """
        self._waiting.append((taken, Later(bad)))
        now = now or bad.device.type == "cpu"
        while self._waiting and (now or len(self._waiting) > 1):
            seen, flag = self._waiting.popleft()
            if flag.read():
                self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
                yield seen
            else:
                self.in_a_row = 0

    def words(self) -> str:
        """How many in a row, for a message."""
        return f", as in {self.in_a_row} steps in a row" if self.in_a_row > 1 else ""


def says_not_finite(error: Exception) -> bool:
    """Whether an error speaks of NaN or infinity."""
    return not isinstance(error, torch.cuda.OutOfMemoryError) and bool(_NOT_FINITE.search(str(error)))


def in_words(names: list[str]) -> str:
    """Names for a message: the first ones, each once; gradients only where nothing else is, for they come of it."""
    unique = list(dict.fromkeys(name for name in names if not name.startswith(_GRADIENT)) or dict.fromkeys(names))
    return ", ".join(unique[:_NAMED]) + (f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else "")


def save_batch(path: Path, step: int, names: list[str], noise: Mapping[str, Any], **batches: Batch) -> None:
    """Write what a bad step was made with, for `torch.load`.

    Args:
        path: the file.
        step: the step's number.
        names: what was NaN or infinite.
        noise: what else decided on the step, by name.
        **batches: its samples, each batch by the name under which it stands in the file.
    """
    content = {"step": step, "rank": distributed.rank(), "not_finite": names, **noise}
    for name, batch in batches.items():
        content[name] = {
            "images": batch.images.detach().cpu().contiguous(), "captions": list(batch.captions),
            "keys": list(batch.keys), "class_ids": batch.class_ids, "indices": batch.indices,
        }  # fmt: skip
    write_file(content, path)
