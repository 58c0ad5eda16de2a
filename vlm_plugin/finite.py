"""Numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def not_finite(content: object, name: str = "") -> str | None:
    """The name of the first number or tensor that holds NaN or infinity; None where there is none.

    Args:
        content: numbers and tensors, in mappings of any depth; whatever else is passed over.
        name: what `content` is called; the keys that lead to a value follow, with dots between.
    """
    if isinstance(content, Mapping):
        named = (not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in content.items())
        return next(filter(None, named), None)
    if isinstance(content, Tensor):
        return None if bool(content.isfinite().all()) else name
    return name if isinstance(content, float) and not math.isfinite(content) else None
