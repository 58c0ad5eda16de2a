"""What the metrics share: values kept picture by picture, their mean and spread, features from pictures."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from vlm_plugin.checks import check_captions, check_integer, first_tensor, is_image_batch
from vlm_plugin.features import Features, check_features

_INSTANCES = itertools.count(1)
# How messages about pictures begin.
EXPECTED = "images: expected a floating-point tensor (B, 3, H, W) in [-1, 1]"


def mean_and_spread(values: Tensor, folds: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean of all values, and the standard deviation of the means of equal parts of them.

    Args:
        values: `(N,)` floating point, at least one.
        folds: number of parts, at least 2; their sizes differ by at most one.
        seed: shuffles the values into parts, by itself and N alone.

    Returns:
        Two scalars, of the type of `values` and where they are; the spread is unbiased, and 0 where there are fewer
        than `2 * folds` values.

    Raises:
        TypeError, ValueError: `values` is something else, or `folds` or `seed` no such integer.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"values: expected a floating-point tensor (N,), got {kind}")
    if values.dim() != 1 or not len(values):
        raise ValueError(f"values: expected shape (N,) with N at least 1, got {tuple(values.shape)}")
    check_integer("folds", folds, 2)
    check_integer("seed", seed, 0)
    exact = values.detach().cpu().double()
    spread = exact.new_zeros(())
    if len(exact) >= 2 * folds:
        order = torch.randperm(len(exact), generator=torch.Generator().manual_seed(seed), device="cpu")
        spread = torch.stack([part.mean() for part in exact[order].tensor_split(folds)]).std()
    return exact.mean().to(values), spread.to(values)


class PictureMetric(Metric):
    """One value a picture; their mean and spread.

    Networks are submodules: they follow `metric.to(device)`, and score in eval mode and without a gradient, whatever
    mode they are in. That mode stays theirs: a host may be training the network that it lets a metric look at.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, folds: int, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        check_integer("folds", folds, 2)
        check_integer("seed", seed, 0)
        self.folds, self.seed = folds, seed
        self._range_checked = False
        # A MetricCollection lets metrics whose states agree after the first batch share one update from then on, which
        # would give two judges that agree on it the results of one. A number of its own keeps each metric apart.
        self.add_state("instance", torch.tensor(next(_INSTANCES)), dist_reduce_fx="max")

    def train(self, mode: bool = True) -> PictureMetric:
        """Leaves the networks in the mode that they are in: see `_evaluating`."""
        self.training = mode
        return self

    def values(self) -> Tensor:
        """`(N,)` one value a picture, in the order of the updates, before or after `compute`.

        In several processes these are this process's own, except inside `with metric.sync_context():`.

        Raises:
            ValueError: there was no update.
        """
        raise NotImplementedError

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and spread, two scalars: see `mean_and_spread`."""
        return mean_and_spread(self.values(), self.folds, self.seed)

    def plot(
        self, val: tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]] | None = None, ax: object = None
    ) -> tuple[object, object]:
        """Plot the mean of one result or of several, as torchmetrics does.

        Args:
            val: what `compute` or `forward` returned, or a list of such; computed when left out.
            ax: matplotlib axes to draw into.

        Returns:
            Figure and axes.
        """
        val = self.compute() if val is None else val
        one = isinstance(val[0], Tensor)
        return self._plot(val[0] if one else [mean for mean, _ in val], ax)

    def _hold(self, name: str, function: Callable) -> None:
        """Keep a function as an attribute; a network that it is, or is a method of, becomes a submodule."""
        if not callable(function):
            raise ValueError(f"{name}: expected a function or a module, got {type(function).__name__}")
        owner = module_of(function)
        if owner is not None and owner is not function:
            setattr(self, f"{name}_module", owner)
        setattr(self, name, function)

    def _joined(self, state: list[Tensor] | Tensor) -> Tensor:
        if not len(state):
            raise ValueError(f"{type(self).__name__}: expected at least one update before a result is asked for")
        return dim_zero_cat(state)

    @contextlib.contextmanager
    def _evaluating(self, device: torch.device) -> Iterator[None]:
        """Eval mode, no gradient, full precision; a network that a host shares and trains goes on training after."""
        awake = [module for module in self.modules() if module.training]
        for module in awake:
            module.training = False
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                yield
        finally:
            for module in awake:
                module.training = True

    def _encoded(
        self,
        images: Tensor | Features,
        captions: Sequence[str] | Features,
        encode_image: Callable[[Tensor], object],
        encode_text: Callable[[list[str]], object],
    ) -> tuple[object, object]:
        """What the encoders return, B rows each; what is encoded already stays."""
        encoded = isinstance(images, Features)
        images = check_features(images, "images") if encoded else self._check_images(images, module_of(encode_image))
        batch, device = (len(images.pooled), images.pooled.device) if encoded else (len(images), images.device)
        if isinstance(captions, Features):
            text = check_features(captions, "captions")
            if len(text.pooled) != batch:
                raise ValueError(f"captions: expected {batch} as there are images, got {len(text.pooled)}")
        else:
            captions = check_captions(captions, batch)
            with self._evaluating(device):
                text = encode_text(captions)
        if encoded:
            return images, text
        with self._evaluating(device):
            return encode_image(images), text

    def _check_images(self, images: Tensor, network: nn.Module | None) -> Tensor:
        """Images as `network` (None for a bare function) takes them, once they are what they should be."""
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise ValueError(f"{EXPECTED}, got {images.dtype if isinstance(images, Tensor) else type(images).__name__}")
        if not is_image_batch(images):
            raise ValueError(f"{EXPECTED}, got shape {tuple(images.shape)}")
        self._check_range(images.detach())
        weight = None if network is None else first_tensor(network)
        if weight is None:
            return images
        if images.device != weight.device:
            raise ValueError(f"images: expected them on {weight.device}, where the network is, got {images.device}")
        return images.to(weight.dtype)

    def _check_range(self, images: Tensor) -> None:
        """Values lie in [-1, 1], and not in [0, 1] alone, which is asked until a batch with a dark pixel has told."""
        least, most = (float(value) for value in torch.aminmax(images))
        # Comparisons with NaN are all false: it would pass, and for pictures of the right range, too.
        if math.isnan(least):
            raise ValueError(f"{EXPECTED}, got NaN")
        if least < -1.02 or most > 1.02:
            raise ValueError(f"{EXPECTED}, got values from {least:.3g} to {most:.3g}")
        # As in the loss: uniform pictures fit any range.
        if not self._range_checked and least != most:
            if least >= 0:
                raise ValueError(f"{EXPECTED}, got no negative value ({least:.3g} to {most:.3g}): is this [0, 1]?")
            self._range_checked = True


def module_of(function: Callable) -> nn.Module | None:
    """The network that a function is or is a method of."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None
