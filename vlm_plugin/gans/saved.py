"""Networks as files and run folders hold them."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from vlm_plugin import VLM
from vlm_plugin.files import first_few, misfits, read_checkpoint, read_file, whole
from vlm_plugin.foreign import without_wrappers
from vlm_plugin.matcher.choose import PACKAGED
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


class NetworkFiles(abc.ABC):
    """How a baseline's networks are read from files; its trainer inherits it.

    Attributes:
        name: stands in the files that `Trainer.save_start` writes.
        learns_from_matcher: the matcher trains the generator in plain runs too, so that its scores are circular there.
    """

    name: str
    learns_from_matcher = False

    @classmethod
    def read(cls, path: Path, *, discriminators: bool = True, averaged: bool = True) -> Saved:
        """Read networks without executing code: a run's folder, what `save_start` wrote, or a published checkpoint.

        Args:
            path: a run's folder or a file.
            discriminators: False leaves alone what lies in files beside a published generator.
            averaged: False takes a run's generator as trained and not its average; files hold one alone.

        Raises:
            FileNotFoundError, ValueError: the message names the file.
        """
        if path.is_dir():
            return cls._read_run(path, averaged)
        content = read_file(path, f"checkpoint of {cls.name}")
        if not isinstance(content, Mapping):
            raise ValueError(f"{path}: expected a checkpoint of {cls.name}, got a {type(content).__name__}")
        if content.keys() >= {"step", "trainer"}:
            # Its weights alone do not say what conditioned them: that stands in options.json beside it.
            raise ValueError(f"{path}: this is a run's checkpoint: name its folder, {path.parent}")
        if "format" not in content:
            return Saved(cls.published(content, path, discriminators), False, None, None)
        content = read_checkpoint(path, f"vlm_plugin.{cls.name}", 1)
        with whole(path):
            notes = content["notes"]
            weights = state_dicts(content["weights"], path)
            return Saved(
                weights, notes["settings"]["normalise_text"], PACKAGED, notes["text_fingerprint"],
                trained_with=cls._trained_with(notes, notes.get("with_vlm")),
            )  # fmt: skip

    @classmethod
    def _read_run(cls, path: Path, averaged: bool) -> Saved:
        for file in ("options.json", "checkpoint.pt"):
            if not (path / file).is_file():
                raise FileNotFoundError(f"{path}: expected a run's folder with {file}")
        with whole(path / "options.json"):
            options = json.loads((path / "options.json").read_text(encoding="utf-8"))
            if options["baseline"] != cls.name.lower():
                raise ValueError(f"{path}: expected a run of {cls.name.lower()}, got one of {options['baseline']}")
            matcher = options["vlm"] or options["text_encoder"]
            told = options["settings"]["normalise_text"], matcher, options["text_fingerprint"], options["max_words"]
            data = Path(options["data"]) if options["data"] else None
            trained_with = cls._trained_with(options, options["vlm"])
            skip_bad = options.get("skip_bad", False)
        file = path / "checkpoint.pt"
        content = read_file(file, "checkpoint")
        with whole(file):
            weights = {n: w for n, w in content["trainer"].items() if not n.endswith("_adam")}
            average = weights.pop("average")
            if averaged:
                weights["generator"] = average
            return Saved(state_dicts(weights, file), *told, data, trained_with, skip_bad)

    @classmethod
    def _trained_with(cls, notes: Mapping[str, Any], with_vlm: object) -> frozenset[str]:
        """What notes say of the matchers that trained; those of an earlier release name the last run's alone."""
        last = [notes["matcher"]] if (with_vlm or cls.learns_from_matcher) and notes.get("matcher") else []
        return frozenset(notes.get("trained_with", last))

    @classmethod
    def load_generator(cls, saved: Saved, where: str) -> nn.Module:
        """The generator alone, of the sizes that its weights tell.

        Raises:
            ValueError: no generator's weights; `where` names them.
        """
        state = saved.weights["generator"]
        generator = cls._sized(state, where)
        load_weights(generator, state, where)
        return generator

    @classmethod
    def _sized(cls, state: Mapping[str, Tensor], where: str) -> nn.Module:
        """`generator_of`, with a ValueError that names the file for whatever no generator's shapes lead to."""
        try:
            return cls.generator_of(state)
        except Exception as error:
            raise ValueError(f"{where}: no generator of {cls.name} ({type(error).__name__}: {error})") from None

    @staticmethod
    @abc.abstractmethod
    def published(content: Mapping[str, Any], path: Path, discriminators: bool) -> dict[str, Mapping[str, Tensor]]:
        """State dicts by this trainer's names for its networks, out of a published checkpoint's content.

        Args:
            content: what the file holds.
            path: the file, for messages and for what lies beside it.
            discriminators: read those too, where they lie in files of their own.

        Raises:
            ValueError: no published checkpoint; the message names the file.
        """

    @staticmethod
    @abc.abstractmethod
    def generator_of(state: Mapping[str, Tensor]) -> nn.Module:
        """A generator of the sizes that a state dict's shapes tell, without its weights.

        Raises:
            KeyError: no generator's state dict.
        """


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
        ValueError: names, shapes or kinds of numbers differ, see `misfits`; the first few are listed.
    """
    if problems := misfits({} if network is None else network.state_dict(), state):
        raise ValueError(f"{where}: does not fit the settings' network: {first_few(problems)}")


def bare(state: object, where: str) -> dict[str, Tensor]:
    """A state dict without the prefixes that wrappers leave, see `without_wrappers`.

    Raises:
        ValueError: something else.
    """
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{where}: expected a state dict of tensors")
    return without_wrappers(state)


def state_dicts(weights: Mapping[str, object], path: Path) -> dict[str, dict[str, Tensor]]:
    weights["generator"]
    return {name: bare(state, f"{path}, {name}") for name, state in weights.items()}
