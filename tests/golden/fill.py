"""Deterministic parameters: the same numbers for the same (name, shape) on every machine."""

import zlib

import torch


def fill_(module):
    """Overwrite every parameter and buffer of `module` with values that depend only on its name and shape.

    value[i] = sin(i * 0.7 + phase) with phase = crc32(name) % 1000, computed in float64, then scaled:
    weights (dim >= 2) by sqrt(2 / fan_in); `running_var` as 1 + 0.1*|v|; 1-d `weight` as 1 + 0.1*v;
    every other 1-d tensor by 0.1. `num_batches_tracked` becomes 0.
    """
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            phase = zlib.crc32(name.encode()) % 1000
            v = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + phase).reshape(tensor.shape)
            if tensor.dim() >= 2:
                v = v * (2.0 / (tensor[0].numel())) ** 0.5
            elif name.endswith("running_var"):
                v = 1 + 0.1 * v.abs()
            elif name.endswith("weight"):
                v = 1 + 0.1 * v
            else:
                v = 0.1 * v
            tensor.copy_(v.to(tensor.dtype))
    return module


def wave(*shape, phase=0.0, scale=1.0):
    """A deterministic input tensor of `shape` in [-scale, scale]."""
    n = 1
    for s in shape:
        n *= s
    return (scale * torch.sin(torch.arange(n, dtype=torch.float64) * 0.37 + phase)).reshape(shape).float()
