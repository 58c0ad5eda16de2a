"""The files of published DAMSM encoders."""

from __future__ import annotations

import os

from torch import Tensor

from vlm_plugin.files import read_file


def damsm_text_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict of a published DAMSM text encoder, on the CPU.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    return damsm_state_dict(path, ("encoder.weight", "rnn.weight_hh_l0"), "DAMSM text encoder")


def damsm_state_dict(path: str | os.PathLike, keys: tuple[str, ...], what: str) -> dict[str, Tensor]:
    state = read_file(path, "state dict")
    if missing := [key for key in keys if not isinstance(state, dict) or key not in state]:
        raise ValueError(f"{path}: expected the state dict of a {what} (with {missing[0]!r}), got something else")
    return dict(state)
