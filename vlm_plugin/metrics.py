"""Measures of how well pictures agree with their captions, as torchmetrics classes for anybody's evaluation loop.

`VLMS` (the matching score block's score), `RPrecision` (does a picture retrieve its own caption) and
`AttributeAccuracy` (does a judge find what the caption names) each keep one value a picture. `compute()` gives their
mean and a spread over ten parts, `values()` the values themselves. They need `pip install ".[eval]"`
in the repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .features import Features, as_features, as_integers, check_features
from .loss import _first_tensor, check_scorer
from .matching import unit
from .model import VLM

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
    from torchmetrics.utilities.distributed import gather_all_tensors
except ImportError as error:
    raise ImportError('vlm_plugin.metrics: expected torchmetrics: in the repository: pip install ".[eval]"') from error

__all__ = ["VLMS", "AttributeAccuracy", "RPrecision", "caption_ids", "different_groups", "mean_and_spread"]

_ROWS = 100  # pictures whose candidates are drawn at a time; the draw depends on it, so it is a constant
_TIE = 1e-6  # cosines of equal captions that were encoded in different batches differ by rounding, far below this
_NO_CANDIDATE = 2.0  # above every random key
_INSTANCES = itertools.count(1)


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
    _check_integer("folds", folds, 2)
    _check_integer("seed", seed, 0)
    exact = values.detach().cpu().double()
    spread = exact.new_zeros(())
    if len(exact) >= 2 * folds:
        order = torch.randperm(len(exact), generator=torch.Generator().manual_seed(seed))
        spread = torch.stack([part.mean() for part in exact[order].tensor_split(folds)]).std()
    return exact.mean().to(values), spread.to(values)


def different_groups(row_facts: Tensor, all_facts: Tensor) -> Tensor:
    """Captions of another group may serve as wrong ones: the default of `RPrecision`.

    Args:
        row_facts: `(R, F)` integers about R pictures, a group's id for instance.
        all_facts: `(N, F)` the same about N captions.

    Returns:
        `(R, N)` bool, True where any of the F integers differs.
    """
    return (row_facts[:, None] != all_facts[None]).any(-1)


def caption_ids(captions: Sequence[str]) -> Tensor:
    """Ids of captions' texts: equal texts have equal ids, in every process and on every machine.

    Args:
        captions: B strings.

    Returns:
        `(B,)` int64, 0 to 2^63 - 1.

    Raises:
        TypeError: `captions` is one string.
    """
    if isinstance(captions, str):
        raise TypeError(f"captions: expected B strings, got the one string {captions[:40]!r}")
    digests = (hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest() for caption in captions)
    return torch.tensor([int.from_bytes(digest[:8], "big") >> 1 for digest in digests], dtype=torch.int64)


class _PictureMetric(Metric):
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
        _check_integer("folds", folds, 2)
        _check_integer("seed", seed, 0)
        self.folds, self.seed = folds, seed
        self._range_checked = False
        # A MetricCollection lets metrics whose states agree after the first batch share one update from then on, which
        # would give two judges that agree on it the results of one. A number of its own keeps each metric apart.
        self.add_state("instance", torch.tensor(next(_INSTANCES)), dist_reduce_fx="max")

    def train(self, mode: bool = True) -> _PictureMetric:
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
        owner = _module_of(function)
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

    def _check_images(self, images: Tensor, network: nn.Module | None) -> Tensor:
        """Images as `network` (None for a bare function) takes them, once they are what they should be."""
        expected = "images: expected a floating-point tensor (B, 3, H, W) in [-1, 1]"
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise ValueError(f"{expected}, got {images.dtype if isinstance(images, Tensor) else type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != 3 or not images.numel():
            raise ValueError(f"{expected}, got shape {tuple(images.shape)}")
        least, most = (float(value) for value in torch.aminmax(images.detach()))
        # Comparisons with NaN are all false: it would pass, and for pictures of the right range, too.
        if math.isnan(least):
            raise ValueError(f"{expected}, got NaN")
        if least < -1.02 or most > 1.02:
            raise ValueError(f"{expected}, got values from {least:.3g} to {most:.3g}")
        # As the loss does: pictures in [0, 1] pass for ones in [-1, 1], until a batch with a dark pixel has told.
        if not self._range_checked and least != most:
            if least >= 0:
                raise ValueError(f"{expected}, got no negative value ({least:.3g} to {most:.3g}): is this [0, 1]?")
            self._range_checked = True
        weight = None if network is None else _first_tensor(network)
        if weight is None:
            return images
        if images.device != weight.device:
            raise ValueError(f"images: expected them on {weight.device}, where the network is, got {images.device}")
        return images.to(weight.dtype)


class VLMS(_PictureMetric):
    """Mean score that a matcher's scorer gives to pictures and their captions.

    A score from the very matcher that trained the generator is circular: take another one.

    ```python
    vlms = VLMS(VLM.load("birds.vlm.pt"))
    for images, captions in batches:
        vlms.update(images, captions)
    mean, spread = vlms.compute()
    ```

    Source: the score is the paper's; its mean over the evaluated pairs is ours.

    Args:
        vlm: a matcher with a scorer.
        folds: parts that the spread is taken over.
        seed: of the parts.
        **kwargs: as every torchmetrics `Metric` takes.

    Raises:
        ValueError: the matcher has no scorer, or one that was trained on other encoders.
    """

    scores: list[Tensor] | Tensor

    def __init__(self, vlm: VLM, *, folds: int = 10, seed: int = 0, **kwargs) -> None:
        super().__init__(folds, seed, **kwargs)
        _check_vlm(vlm)
        if vlm.scorer is None:
            raise ValueError(
                f"vlm: expected a matcher with a scorer, got {vlm.fingerprint}, which has none: "
                "train one (vlm-plugin pretrain)"
            )
        check_scorer(vlm)
        self.vlm = vlm
        self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, images: Tensor | Features, captions: Sequence[str] | Features) -> None:
        """Add pictures.

        Args:
            images: `(B, 3, H, W)` floating point in [-1, 1], on the matcher's device; or what it encoded them to.
            captions: B strings, row i the one that picture i was drawn from; or what the matcher encoded them to.

        Raises:
            ValueError, TypeError: a wrong shape, type, range or number; the message names the argument.
        """
        image, text = _encode(self, images, captions, self.vlm.encode_image, self.vlm.encode_text)
        weight = _first_tensor(self.vlm.scorer)
        with self._evaluating(weight.device):
            scores = self.vlm.scorer(image.to(weight.device), text.to(weight.device), "caption").sigmoid()
        self.scores.append(scores.to(self.device, torch.float32))

    def update_features(self, image: Features, text: Features) -> None:
        """Add B pictures that this metric's matcher has encoded already, one encoding for several metrics.

        Args:
            image: `vlm.encode_image(images)`.
            text: `vlm.encode_text(captions)`.
        """
        self.update(check_features(image, "image"), check_features(text, "text"))

    def values(self) -> Tensor:
        """`(N,)` scores in (0, 1)."""
        return self._joined(self.scores)


class RPrecision(_PictureMetric):
    """Share of pictures whose own caption ranks strictly first among some wrong ones, by cosine of global vectors.

    Chance is `1 / candidates`. Which wrong captions a picture gets is drawn without replacement from all that may
    serve, by `seed` and the pictures' number and order alone: not by batches or device. (Several processes have their
    pictures one after another, so another number of them is another order.) Cosines within 1e-6 of each other are a
    tie, and a tie is no hit. Where fewer than `candidates - 1` captions may serve, all of them
    do (so what `forward` returns for a small batch is no R-precision of this many candidates). Where none may serve a
    picture, its value is NaN, and so is the mean. Memory grows with the number of pictures, not with its square.

    ```python
    r_precision = RPrecision(vlm)  # or RPrecision(image_encoder=cnn, text_encoder=lambda captions: ...)
    for images, captions, class_ids in batches:
        r_precision.update(images, captions, class_ids)
    mean, spread = r_precision.compute()
    ```

    Source: AttnGAN's protocol, with 99 wrong captions and ten folds.

    Args:
        vlm: the matcher that judges; or leave it out and give any pair of functions or modules:
        image_encoder: images `(B, 3, H, W)` in [-1, 1] -> `(B, D)`, `Features`, or DAMSM's `(regions, code)`.
        text_encoder: list of B strings -> `(B, D)` or `Features`.
        candidates: the right caption and `candidates - 1` wrong ones.
        folds: parts that the spread is taken over.
        seed: of the draw and of the parts.
        mismatched: `(row_facts (R, F), all_facts (N, F)) -> (R, N)` bool on the CPU, which captions may serve which
            picture as a wrong one, from what `update` was told about each sample; a picture's own never does.
        **kwargs: as every torchmetrics `Metric` takes.

    Raises:
        ValueError, TypeError: arguments that do not fit together; the message names them.
    """

    image_vectors: list[Tensor] | Tensor
    text_vectors: list[Tensor] | Tensor
    facts: list[Tensor] | Tensor

    def __init__(
        self,
        vlm: VLM | None = None,
        *,
        image_encoder: Callable[[Tensor], object] | None = None,
        text_encoder: Callable[[list[str]], object] | None = None,
        candidates: int = 100,
        folds: int = 10,
        seed: int = 0,
        mismatched: Callable[[Tensor, Tensor], Tensor] = different_groups,
        **kwargs,
    ) -> None:
        super().__init__(folds, seed, **kwargs)
        pair = [image_encoder is not None, text_encoder is not None]
        if any(pair) if vlm is not None else not all(pair):
            raise ValueError("vlm: expected either a VLM or both image_encoder and text_encoder")
        _check_integer("candidates", candidates, 2)
        if not callable(mismatched):
            raise TypeError(f"mismatched: expected a function of two tensors, got {type(mismatched).__name__}")
        self.vlm = vlm
        if vlm is not None:
            _check_vlm(vlm)
        else:
            self._hold("image_encoder", image_encoder)
            self._hold("text_encoder", text_encoder)
        self.candidates = candidates
        self.mismatched = mismatched
        self.add_state("image_vectors", [], dist_reduce_fx="cat")
        self.add_state("text_vectors", [], dist_reduce_fx="cat")
        # (B, 1 + F): whether a sample's facts were given or are the id of its text, then the facts.
        self.add_state("facts", [], dist_reduce_fx="cat")

    def update(
        self, images: Tensor | Features, captions: Sequence[str] | Features, facts: Tensor | None = None
    ) -> None:
        """Add pictures.

        Args:
            images: `(B, 3, H, W)` floating point in [-1, 1], on the encoder's device; or their Features.
            captions: B strings, row i the one that picture i was drawn from; or their Features.
            facts: `(B,)` or `(B, F)` integers about each sample, on any device, which `mismatched` reads. Without
                them they are the ids of the captions' texts, so that equal captions are never wrong ones.

        Raises:
            ValueError, TypeError: a wrong shape, type, range or number; the message names the argument.
        """
        if self.vlm is not None:
            encoders = self.vlm.encode_image, self.vlm.encode_text
        else:
            encoders = self.image_encoder, self.text_encoder
        image, text = _encode(self, images, captions, *encoders)
        batch = len(images.pooled) if isinstance(images, Features) else len(images)
        image = image if isinstance(image, Tensor) else as_features(image, "image_encoder")
        image, text = _pooled(image, "image_encoder", batch), _pooled(text, "text_encoder", batch)
        if image.shape != text.shape:
            raise ValueError(
                f"captions: expected vectors of width {image.shape[1]} as the images', got {text.shape[1]}"
            )
        facts = _check_facts(facts, captions, batch)
        if len(self.facts):
            _check_alike(self.facts[-1], facts)
            if (width := self.image_vectors[-1].shape[1]) != image.shape[1]:
                raise ValueError(f"images: expected vectors of width {width} as before, got {image.shape[1]}")
        # Of length 1 from the start: to make them so at the end would take the memory twice.
        self.image_vectors.append(unit(image.detach().to(self.device, torch.float32)))
        self.text_vectors.append(unit(text.detach().to(self.device, torch.float32)))
        self.facts.append(facts.to(self.device))

    def update_features(self, image: Features, text: Features, facts: Tensor | None = None) -> None:
        """Add B pictures that are encoded already, one encoding for several metrics.

        Args:
            image: `vlm.encode_image(images)`.
            text: `vlm.encode_text(captions)`.
            facts: as for `update`, but always needed: `caption_ids(captions)` where there is nothing better.
        """
        self.update(check_features(image, "image"), check_features(text, "text"), facts)

    def values(self) -> Tensor:
        """`(N,)` 1.0 where the own caption ranks first, else 0.0; NaN where there is no wrong caption."""
        # On the CPU whatever the device: the draw has to be the same everywhere.
        images, captions, facts = (
            self._joined(state).cpu() for state in (self.image_vectors, self.text_vectors, self.facts)
        )
        _check_alike(facts[:1], facts)
        first = _ranks_first(images, captions, facts[:, 1:], self.mismatched, self.candidates, self.seed)
        return first.to(self.device)

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: object = None) -> None:
        """As torchmetrics does, and also where a process has seen no sample or other facts than the rest."""
        states = (self.image_vectors, self.text_vectors, self.facts)
        own = torch.tensor([state[0].shape[1] if len(state) else 0 for state in states], device=self.device)
        widths = torch.stack(dist_sync_fn(own, group=process_group or self.process_group))
        widest = widths.amax(0)
        # On every process alike, since one that stopped alone would leave the others waiting.
        if not bool(((widths == widest) | (widths == 0)).all()):
            raise ValueError(f"facts: expected vectors and facts of one width in all processes, got {widths.tolist()}")
        if not len(self.facts):
            types = (torch.float32, torch.float32, torch.int64)
            for state, width, dtype in zip(states, widest.tolist(), types, strict=True):
                state.append(torch.empty(0, width, dtype=dtype, device=self.device))
        super()._sync_dist(dist_sync_fn, process_group)


class AttributeAccuracy(_PictureMetric):
    """Share of the attributes that each caption names which a judge finds in its picture, averaged over pictures.

    Synthetic birds are judged with `AttributeAccuracy(Judge.load().find, said_by)`, where
    `from vlm_plugin.tools.judge import Judge` and `from vlm_plugin.data.birds import said_by`.

    Source: ours.

    Args:
        find: images `(B, 3, H, W)` in [-1, 1] -> `(B, A)` the value of each attribute. A module, or a method of one.
        said_by: B captions -> `(B, A)` the values that they name, and `(B, A)` bool, True where they name one.
        folds: parts that the spread is taken over.
        seed: of the parts.
        **kwargs: as every torchmetrics `Metric` takes.
    """

    shares: list[Tensor] | Tensor

    def __init__(
        self,
        find: Callable[[Tensor], Tensor],
        said_by: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
        *,
        folds: int = 10,
        seed: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(folds, seed, **kwargs)
        self._hold("find", find)
        self._hold("said_by", said_by)
        self.add_state("shares", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, captions: Sequence[str]) -> None:
        """Add pictures.

        Args:
            images: `(B, 3, H, W)` floating point in [-1, 1], on the judge's device.
            captions: B strings, row i the one that picture i was drawn from; each names at least one attribute.

        Raises:
            ValueError: a wrong shape, type, range or number; the message names the argument.
        """
        images = self._check_images(images, _module_of(self.find))
        captions = _check_captions(captions, len(images))
        with self._evaluating(images.device):
            found = self.find(images)
            values, named = (part.to(found.device) for part in self.said_by(captions))
        if not found.shape == values.shape == named.shape or found.dim() != 2 or named.dtype != torch.bool:
            raise ValueError(
                "find, said_by: expected values (B, A), and values (B, A) with bool (B, A), "
                f"got {tuple(found.shape)}, and {tuple(values.shape)} with {named.dtype} {tuple(named.shape)}"
            )
        count = named.sum(1)
        if not bool(count.all()):
            silent = int((count == 0).nonzero()[0])
            raise ValueError(f"captions[{silent}]: expected it to name an attribute, got {captions[silent]!r}")
        self.shares.append((((found == values) & named).sum(1) / count).to(self.device, torch.float32))

    def values(self) -> Tensor:
        """`(N,)` shares in [0, 1]."""
        return self._joined(self.shares)


def _encode(
    metric: _PictureMetric,
    images: Tensor | Features,
    captions: Sequence[str] | Features,
    encode_image: Callable[[Tensor], object],
    encode_text: Callable[[list[str]], object],
) -> tuple[object, object]:
    """What the encoders return, B rows each; what is encoded already stays."""
    encoded = isinstance(images, Features)
    images = check_features(images, "images") if encoded else metric._check_images(images, _module_of(encode_image))
    batch, device = (len(images.pooled), images.pooled.device) if encoded else (len(images), images.device)
    if isinstance(captions, Features):
        text = check_features(captions, "captions")
        if len(text.pooled) != batch:
            raise ValueError(f"captions: expected {batch} as there are images, got {len(text.pooled)}")
    else:
        captions = _check_captions(captions, batch)
        with metric._evaluating(device):
            text = encode_text(captions)
    if encoded:
        return images, text
    with metric._evaluating(device):
        return encode_image(images), text


def _pooled(output: object, name: str, batch: int) -> Tensor:
    """The `(batch, D)` vectors in what an encoder of that name returned."""
    pooled = output.pooled if isinstance(output, Features) else output
    fits = isinstance(pooled, Tensor) and pooled.is_floating_point() and pooled.dim() == 2 and len(pooled) == batch
    if not fits:
        got = f"{pooled.dtype} {tuple(pooled.shape)}" if isinstance(pooled, Tensor) else type(pooled).__name__
        raise ValueError(f"{name}: expected it to return floating-point vectors ({batch}, D) or Features, got {got}")
    return pooled


def _module_of(function: Callable) -> nn.Module | None:
    """The network that a function is or is a method of."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _ranks_first(
    images: Tensor,
    captions: Tensor,
    facts: Tensor,
    mismatched: Callable[[Tensor, Tensor], Tensor],
    candidates: int,
    seed: int,
) -> Tensor:
    """`(N,)` float32: whether the own caption's cosine is above that of each wrong caption drawn (the vectors are unit
    ones), NaN where none is drawn."""
    generator = torch.Generator().manual_seed(seed)
    count = len(images)
    drawn = min(candidates, count) - 1
    first = []
    for rows in torch.arange(count).split(_ROWS):
        wrong = mismatched(facts[rows], facts)
        if wrong.dtype != torch.bool or wrong.shape != (len(rows), count):
            raise ValueError(
                f"mismatched: expected it to return bool of shape {(len(rows), count)}, "
                f"got {wrong.dtype} of shape {tuple(wrong.shape)}"
            )
        # Random keys, with what is not allowed sent to the end: the lowest ones are a draw without replacement.
        keys = torch.rand(len(rows), count, generator=generator).masked_fill_(~wrong, _NO_CANDIDATE)
        keys[torch.arange(len(rows)), rows] = _NO_CANDIDATE
        keys, columns = keys.topk(drawn, largest=False, sorted=False)
        own = (images[rows] * captions[rows]).sum(-1, keepdim=True)
        others = (images[rows, None] * captions[columns]).sum(-1)
        absent = keys == _NO_CANDIDATE
        hits = ((own > others + _TIE) | absent).all(1).float()
        first.append(hits.masked_fill(absent.all(1), torch.nan))
    return torch.cat(first)


def _check_vlm(vlm: VLM) -> None:
    if not isinstance(vlm, VLM):
        raise TypeError(f"vlm: expected a VLM (VLM.load(path) reads one), got {type(vlm).__name__}")


def _check_integer(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


def _check_captions(captions: Sequence[str], batch: int) -> list[str]:
    if isinstance(captions, (str, bytes)) or not isinstance(captions, Sequence):
        raise ValueError(f"captions: expected a list of {batch} strings, got {type(captions).__name__}")
    if len(captions) != batch:
        raise ValueError(f"captions: expected {batch} as there are images, got {len(captions)}")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"captions[{index}]: expected a string, got {type(caption).__name__}")
    return list(captions)


def _check_facts(facts: Tensor | None, captions: Sequence[str] | Features, batch: int) -> Tensor:
    """`(B, 1 + F)` int64: whether facts were given, then facts, or else the ids of the captions' texts."""
    given = facts is not None
    if not given:
        if isinstance(captions, Features):
            raise ValueError(
                "facts: expected integers (B,) or (B, F) where captions are Features, got None: "
                "caption_ids(captions) has those of their texts"
            )
        facts = caption_ids(captions)
    facts = as_integers(facts, "facts")
    if facts.dim() not in (1, 2) or len(facts) != batch or not facts.numel():
        raise ValueError(f"facts: expected shape ({batch},) or ({batch}, F), got {tuple(facts.shape)}")
    facts = facts.detach().reshape(batch, -1).to(torch.int64)
    return torch.cat([facts.new_full((batch, 1), int(given)), facts], dim=1)


def _check_alike(before: Tensor, facts: Tensor) -> None:
    """Every sample needs the same kind of facts: class ids and ids of texts say nothing about each other."""
    if before.shape[1] != facts.shape[1]:
        raise ValueError(f"facts: expected {before.shape[1] - 1} a sample as before, got {facts.shape[1] - 1}")
    if not bool((facts[:, 0] == before[0, 0].to(facts.device)).all()):
        raise ValueError("facts: expected them at every update or at none, got them at some")
