"""Networks as files and run folders hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from vlm_plugin import VLM
from vlm_plugin.matcher.identity import fingerprint


class Saved(NamedTuple):
    """Networks as a file or a run's folder holds them."""

    weights: dict[str, Mapping[str, Tensor]]
    """State dicts: `generator` (the averaged one, where there are two), and discriminators by name as far as there."""
    normalise_text: bool
    """The generator reads text that went through `scaled`."""
    matcher: str | None
    """What `load_matcher` takes to get the text encoder that conditioned the generator; None where nothing says so."""
    text_fingerprint: str | None
    """Fingerprint of that text encoder."""
    max_words: int | None = None
    """Words kept of a caption; None for as many as the text encoder's own file says."""
    data: Path | None = None
    """Folder of the captions, which may hold that text encoder's vocabulary."""
    trained_with: frozenset[str] = frozenset()
    """`marks` of every matcher whose loss trained the generator, in this run or in one that it began from: their scores
    of it are circular."""

    skip_bad: bool = False
    """The run left out pictures that could not be read."""

    def check(self, matcher: VLM, where: str) -> None:
        """Refuse a text encoder that the generator was not trained with.

        Raises:
            ValueError: it is another one.
        """
        given = fingerprint(matcher.text_encoder)
        if self.text_fingerprint not in (None, given):
            raise ValueError(
                f"{where}: trained with the text encoder {self.text_fingerprint}, got {given}; name the file of the "
                "former (--text-encoder, or --vlm with the dual loss)"
            )


def load_weights(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict, all of it or nothing; see `check_weights`."""
    check_weights(network, state, where)
    network.load_state_dict(state)


def check_weights(network: nn.Module | None, state: Mapping[str, Tensor], where: str) -> None:
    """Refuse a state dict that is not the network's.

    Args:
        network: None where the trainer has no such network.
        state: the weights, of any floating-point type.
        where: names them in messages.

    Raises:
        ValueError: names or shapes differ; the first few are listed. A BatchNorm's counter may be missing, as torch
            itself allows: files from before torch 0.4.1 have none.
    """
    expected = {} if network is None else network.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{where}: does not fit the settings' network: {'; '.join(problems[:3])}{more}")


def bare(state: object, where: str) -> dict[str, Tensor]:
    """A state dict without the `module.` prefixes that data-parallel wrappers leave.

    Raises:
        ValueError: something else.
    """
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{where}: expected a state dict of tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def state_dicts(weights: Mapping[str, object], path: Path) -> dict[str, dict[str, Tensor]]:
    weights["generator"]
    return {name: bare(state, f"{path}, {name}") for name, state in weights.items()}
