"""The device and the precision of a run."""

from __future__ import annotations

import os

import torch


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name`; without a name the GPU of this process where there is one, else the CPU.

    Raises:
        ValueError: no device has such a name, this one is not there, or it is neither a CPU nor a CUDA device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # Of torch's other kinds, some lack operations that are used here and some compute nothing.
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: expected cpu, cuda or cuda:NUMBER")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device {name}: this machine has no CUDA device that torch {torch.__version__} can use")
        number = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if number >= torch.cuda.device_count():
            raise ValueError(f"--device {name}: no CUDA device {number}, this machine has {torch.cuda.device_count()}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    return device


def choose_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """The autocast type called `name` ("float32", "bfloat16"); "auto" is bfloat16 where the hardware computes in it.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        # Emulated bfloat16 is many times slower than float32, so a CPU must say that it has the instructions.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if supported else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"precision: expected auto, float32 or bfloat16, got {name!r}")
    return getattr(torch, name)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype` on `device`; does nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
