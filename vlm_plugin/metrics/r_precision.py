"""R-precision: how often a picture retrieves its own caption among others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from vlm_plugin.checks import as_integers, check_integer
from vlm_plugin.features import Features, as_features, check_features
from vlm_plugin.files import caption_id
from vlm_plugin.matcher.vlm import VLM, check_vlm
from vlm_plugin.matching import unit
from vlm_plugin.metrics.base import PictureMetric

# Pictures whose candidates are drawn at a time; the draw depends on it, so it is a constant.
_ROWS_AT_A_TIME = 100
# Cosines of equal captions that were encoded in different batches differ by rounding, far below this.
_TIE_MARGIN = 1e-6
# Above every random key.
_NO_CANDIDATE = 2.0


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
    return torch.tensor([caption_id(caption) for caption in captions], dtype=torch.int64, device="cpu")


class RPrecision(PictureMetric):
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
        check_integer("candidates", candidates, 2)
        if not callable(mismatched):
            raise TypeError(f"mismatched: expected a function of two tensors, got {type(mismatched).__name__}")
        self.vlm = vlm
        if vlm is not None:
            check_vlm(vlm)
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
        image, text = self._encoded(images, captions, *encoders)
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


def _pooled(output: object, name: str, batch: int) -> Tensor:
    """The `(batch, D)` vectors in what an encoder of that name returned."""
    pooled = output.pooled if isinstance(output, Features) else output
    fits = isinstance(pooled, Tensor) and pooled.is_floating_point() and pooled.dim() == 2 and len(pooled) == batch
    if not fits:
        got = f"{pooled.dtype} {tuple(pooled.shape)}" if isinstance(pooled, Tensor) else type(pooled).__name__
        raise ValueError(f"{name}: expected it to return floating-point vectors ({batch}, D) or Features, got {got}")
    return pooled


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
    for rows in torch.arange(count, device="cpu").split(_ROWS_AT_A_TIME):
        wrong = mismatched(facts[rows], facts)
        if wrong.dtype != torch.bool or wrong.shape != (len(rows), count):
            raise ValueError(
                f"mismatched: expected it to return bool of shape {(len(rows), count)}, "
                f"got {wrong.dtype} of shape {tuple(wrong.shape)}"
            )
        # Random keys, with what is not allowed sent to the end: the lowest ones are a draw without replacement.
        keys = torch.rand(len(rows), count, generator=generator, device="cpu").masked_fill_(~wrong, _NO_CANDIDATE)
        keys[torch.arange(len(rows), device="cpu"), rows] = _NO_CANDIDATE
        keys, columns = keys.topk(drawn, largest=False, sorted=False)
        own = (images[rows] * captions[rows]).sum(-1, keepdim=True)
        others = (images[rows, None] * captions[columns]).sum(-1)
        absent = keys == _NO_CANDIDATE
        hits = ((own > others + _TIE_MARGIN) | absent).all(1).float()
        first.append(hits.masked_fill(absent.all(1), torch.nan))
    return torch.cat(first)


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
