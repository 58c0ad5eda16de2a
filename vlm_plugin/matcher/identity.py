"""Which networks these are: fingerprints of weights, and whether a scorer belongs to its encoders."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlm_plugin.checks import first_tensor
from vlm_plugin.matcher.scorer import MatchingScoreBlock


def unwrapped(network: nn.Module) -> nn.Module:
    """The network that torch.compile, DataParallel or DistributedDataParallel wrap; without any, the network itself."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif hasattr(network, "_orig_mod"):  # torch.compile's
            network = network._orig_mod
        else:
            return network


def fingerprint(network: nn.Module | Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that name a network's weights, the same on every device and in every wrapper.

    Args:
        network: a module, or its state dict. Counters of batches seen by a BatchNorm do not count; the dtype does.
    """
    state = unwrapped(network).state_dict() if isinstance(network, nn.Module) else network
    digest = hashlib.sha256()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.is_meta:
            raise ValueError(f"{name}: expected a tensor with values to fingerprint, got one on the meta device")
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def encoder_fingerprints(
    image_encoder: nn.Module | Mapping[str, Tensor], text_encoder: nn.Module | Mapping[str, Tensor]
) -> dict[str, str]:
    """What a scorer keeps of the encoders that it was trained on; each is a module or its state dict."""
    return {"image_encoder": fingerprint(image_encoder), "text_encoder": fingerprint(text_encoder)}


def warn_if_untrained(scorer: nn.Module, needed: str, otherwise: str, *, stacklevel: int) -> None:
    """Warn of a scorer of which nothing says that it was trained.

    Args:
        scorer: a matching score block; of other modules nothing is known.
        needed: what it is needed for, for the message.
        otherwise: what says that it was trained.
        stacklevel: on whose behalf: 1 is the function that calls this one, 2 its caller.
    """
    block = unwrapped(scorer)
    if isinstance(block, MatchingScoreBlock) and block.encoder_fingerprints is None:
        warnings.warn(
            f"scorer: nothing says that it was trained, and {needed}: if it was, on these encoders, "
            f"{otherwise} says so",
            stacklevel=stacklevel + 1,
        )


def check_fingerprints(scorer: nn.Module, otherwise: str, **encoders: nn.Module | None) -> None:
    """Refuse a scorer that was trained on other encoders than these.

    Args:
        scorer: a matching score block; one that names no encoders passes.
        otherwise: what says that it fits all the same.
        **encoders: by the names that the scorer knows; None where there is none.

    Raises:
        ValueError: the message names scorer and encoder.
    """
    known = getattr(unwrapped(scorer), "encoder_fingerprints", None)
    if not known:
        return
    for name, encoder in encoders.items():
        weight = None if encoder is None else first_tensor(encoder)
        # On the meta device, where shapes alone are worked out, there is nothing to compare.
        if weight is not None and weight.is_meta:
            continue
        if encoder is not None and (own := fingerprint(encoder)) != known[name]:
            hint = ""
            if weight is not None and weight.dtype != torch.float32:
                hint = f", of {weight.dtype}: if it is the same one, cast the loss in its place"
            raise ValueError(
                f"scorer: it was trained on another {name} (fingerprint {known[name]}, this one is {own}{hint}): "
                f"train a scorer on these encoders, or {otherwise} says that it fits"
            )
