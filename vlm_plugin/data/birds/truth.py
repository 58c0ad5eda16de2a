"""Which captions are true of which synthetic birds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vlm_plugin.data.birds.attributes import ATTRIBUTES_FILE

_Entry = TypeVar("_Entry")


class BirdTruth:
    """The attributes of a set of birds, read from its attributes.json.

    Args:
        path: the set's folder, or its attributes.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not what `make_birds` writes.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / ATTRIBUTES_FILE if path.is_dir() else path
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path}: expected the attributes of a set of synthetic birds, found no such file"
            )
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.attributes = {name: tuple(choices) for name, choices in content["attributes"].items()}
            self.names = tuple(self.attributes)
            index = {name: {value: i for i, value in enumerate(choices)} for name, choices in self.attributes.items()}
            self._values = {
                key: [index[name][values[name]] for name in self.names] for key, values in content["pictures"].items()
            }
            self._named = {
                key: [[name in set(named) for name in self.names] for named in captions]
                for key, captions in content["captions"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path}: expected attributes, pictures and captions as make_birds writes them, got {error!r}"
            ) from error

    def __contains__(self, key: object) -> bool:
        """Whether a picture's attributes are known."""
        return key in self._values

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._values)

    def values(self, key: str) -> dict[str, str]:
        """A picture's attributes by name.

        Raises:
            ValueError: an unknown picture.
        """
        row = self._look_up(self._values, key)
        return {name: self.attributes[name][index] for name, index in zip(self.names, row, strict=True)}

    def names_in(self, key: str, caption_index: int) -> tuple[str, ...]:
        """The attributes that a picture's caption names.

        Raises:
            ValueError: an unknown picture or caption number.
        """
        return tuple(name for name, flag in zip(self.names, self._caption(key, caption_index), strict=True) if flag)

    def pictures(self, keys: Sequence[str]) -> Tensor:
        """Value indices of pictures, (B, A) int64; column a counts into `attributes[names[a]]`.

        Raises:
            ValueError: an unknown picture.
        """
        rows = [self._look_up(self._values, key) for key in keys]
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(len(rows), len(self.names))

    def named(self, keys: Sequence[str], caption_indices: Sequence[int] | Tensor) -> Tensor:
        """Which attributes captions name, (B, A) bool; `caption_indices` (B,) number each picture's own captions.

        Raises:
            ValueError: an unknown picture or caption number, or lengths that differ.
        """
        numbers = [int(number) for number in caption_indices]
        if len(numbers) != len(keys):
            raise ValueError(f"caption_indices: expected one per key ({len(keys)}), got {len(numbers)}")
        rows = [self._caption(key, number) for key, number in zip(keys, numbers, strict=True)]
        return torch.tensor(rows, dtype=torch.bool, device="cpu").reshape(len(rows), len(self.names))

    def _caption(self, key: str, number: int) -> list[bool]:
        captions = self._look_up(self._named, key)
        if not 0 <= number < len(captions):
            raise ValueError(f"caption_indices: expected 0 to {len(captions) - 1} for {key}, got {number}")
        return captions[number]

    def _look_up(self, table: Mapping[str, _Entry], key: str) -> _Entry:
        if key not in table:
            raise ValueError(f"keys: expected pictures of {self.path}, got {key!r}")
        return table[key]


def find_truth(root: str | Path) -> BirdTruth | None:
    """The attributes of a folder of synthetic birds, None for any other data.

    Raises:
        ValueError: the file of the attributes is not what `make_birds` writes.
    """
    return BirdTruth(root) if (Path(root) / ATTRIBUTES_FILE).is_file() else None


def true_pairs(values: Tensor, anchor_values: Tensor, anchor_named: Tensor) -> Tensor:
    """Which pictures satisfy which captions.

    Args:
        values: the pictures' value indices, (B, A) int64.
        anchor_values: value indices of the pictures that the captions describe, (B', A) int64.
        anchor_named: which attributes each caption names, (B', A) bool.

    Returns:
        (B, B') bool: True where picture i agrees with caption j on everything that caption j names.

    Raises:
        ValueError: the shapes do not fit.
    """
    if values.ndim != 2 or anchor_values.ndim != 2 or values.shape[1] != anchor_values.shape[1]:
        raise ValueError(
            "values, anchor_values: expected (B, A) and (B', A), "
            f"got {tuple(values.shape)} and {tuple(anchor_values.shape)}"
        )
    if anchor_named.shape != anchor_values.shape or anchor_named.dtype != torch.bool:
        raise ValueError(
            f"anchor_named: expected bool of shape {tuple(anchor_values.shape)}, "
            f"got {anchor_named.dtype} of shape {tuple(anchor_named.shape)}"
        )
    agree = values[:, None, :] == anchor_values[None, :, :]
    return (agree | ~anchor_named[None, :, :]).all(-1)
