"""Measures of how well pictures agree with their captions, as torchmetrics classes for anybody's evaluation loop.

`VLMS` (the matching score block's score), `RPrecision` (does a picture retrieve its own caption) and
`AttributeAccuracy` (does a judge find what the caption names) each keep one value a picture. `compute()` gives their
mean and a spread over ten parts, `values()` the values themselves. They need `pip install ".[eval]"`
in the repository.
"""

from __future__ import annotations

try:
    import torchmetrics  # noqa: F401
except ImportError as error:
    raise ImportError('vlm_plugin.metrics: expected torchmetrics: in the repository: pip install ".[eval]"') from error

from vlm_plugin.metrics.attribute_accuracy import AttributeAccuracy
from vlm_plugin.metrics.base import mean_and_spread
from vlm_plugin.metrics.r_precision import RPrecision, caption_ids, different_groups
from vlm_plugin.metrics.vlms import VLMS

__all__ = ["VLMS", "AttributeAccuracy", "RPrecision", "caption_ids", "different_groups", "mean_and_spread"]
