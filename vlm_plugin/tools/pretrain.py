"""Pretraining of the matcher: local, global and general level, with caption anchors and with image anchors.

Sources: the three scores are the paper's; the contrastive losses, the negatives, the positives of the image-image pairs
and the schedule are ours (docs/method.md).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlm_plugin.data import BirdTruth, CaptionedImages, Record, collate, find_truth, list_splits
from vlm_plugin.data.birds import read_caption, said_by, swap_caption, true_pairs
from vlm_plugin.data.dataset import Batch, Sample
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.encoders import LSTMTextEncoder, build_image_encoder
from vlm_plugin.features import Features
from vlm_plugin.finite import not_finite
from vlm_plugin.matching import contrastive_loss, global_scores, local_scores, matched_loss
from vlm_plugin.model import VLM, fingerprint, read_file, write_file
from vlm_plugin.scorer import MatchingScoreBlock
from vlm_plugin.tools import training
from vlm_plugin.tools.command_line import name_or_path, user_path
from vlm_plugin.tools.matchers import damsm_pair
from vlm_plugin.vocabulary import Vocabulary

GAMMA1, GAMMA2, GAMMA3 = 4.0, 5.0, 10.0
GAMMA3_LOCAL = GAMMA2 * GAMMA3
# The scorer's targets. A scorer that is never quite sure keeps a gradient for the generator.
TARGET_TRUE, TARGET_FALSE = 0.9, 0.1
# Captions are sought among POOL; at most POOLS such pools are enough to choose an epoch by.
POOL, POOLS = 100, 20
# Encoder -> image size, learning rate, common dimension.
DEFAULTS = {"conv": (64, 1e-3, 128), "inception": (256, 2e-4, 256), "shufflenet": (64, 1e-3, 128)}


class PairSample(NamedTuple):
    """A captioned picture, and another picture that shares what a caption can say of it."""

    first: Sample
    second: Sample

    def in_place_of(self, skipped: Sequence[str]) -> PairSample:
        """The same pair, standing in for others; see `Sample`."""
        return self._replace(first=self.first.in_place_of(skipped))


class Pairs(Dataset):
    """Samples with a positive for the image-image direction.

    The positive is another picture of the same class where there is one, with equal attributes where those are known
    and such a picture exists; else the same picture augmented anew. (Two views of one picture teach instance identity,
    which no caption can supply: they are the last resort.)

    Args:
        images: the pictures with their captions.
        records: the same pictures' records.
        truth: the attributes of synthetic birds, or None.
        skip_bad: a positive that cannot be used is left out; it too gives way to the same picture augmented anew.
    """

    def __init__(
        self, images: CaptionedImages, records: Sequence[Record], truth: BirdTruth | None, skip_bad: bool = False
    ) -> None:
        self.images, self.skip_bad = images, skip_bad
        groups: dict[object, list[int]] = defaultdict(list)
        names: list[list[object]] = []
        for index, record in enumerate(records):
            own: list[object] = [] if record.class_id is None else [("class", record.class_id)]
            if truth is not None:
                own.insert(0, ("attributes", *truth.values(record.key).values()))
            names.append(own)
            for name in own:
                groups[name].append(index)
        self._partners = [next((groups[n] for n in own if len(groups[n]) > 1), [i]) for i, own in enumerate(names)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PairSample:
        partners = [p for p in self._partners[index] if p != index] or [index]
        first = self.images[index]
        try:
            return PairSample(first, self.images[partners[int(torch.randint(len(partners), ()))]])
        except BadSampleError as error:
            if not self.skip_bad:
                raise
            return PairSample(first, self.images[index].in_place_of([error.where]))


def collate_pairs(samples: Sequence[PairSample]) -> tuple[Batch, Batch]:
    """Two batches: the captioned pictures and, row by row, their image-image positives."""
    return collate([s.first for s in samples]), collate([s.second for s in samples])


class Losses(NamedTuple):
    """Scalars of one step; `total` is their sum and carries the gradient."""

    total: Tensor
    terms: dict[str, Tensor]


def pretraining_losses(
    image: Features,
    caption: Features,
    swapped: Features | None,
    positive: Features,
    scorer: MatchingScoreBlock | None,
    true_captions: Tensor,
    same_group: Tensor,
    generator: torch.Generator | None = None,
    encoders_train: bool = True,
) -> Losses:
    """Every loss of a batch of B matched pairs.

    Args:
        image: B pictures.
        caption: their captions.
        swapped: the first P captions with a word exchanged, each one more negative of its own picture; or None.
        positive: P <= B pictures, row i a positive of picture i. The image-image losses and the scorer's, which cost
            the most, are those of the first P pictures alone.
        scorer: the matching score block; None leaves out the general level.
        true_captions: `(B, B)` bool: picture i satisfies caption j, so j is no negative of it.
        same_group: `(P, P)` bool: pictures i and j are no negatives of each other.
        generator: draws the scorer's hard negatives.
        encoders_train: False leaves out the local and global levels, which train nothing but the encoders.

    Source: ours, after DAMSM's posterior; the scorer's binary cross-entropy with hard negatives is ours.
    """
    terms = {}
    if encoders_train:
        terms |= _encoder_terms(image, caption, swapped, positive, true_captions, same_group)
    if scorer is not None:
        terms |= _scorer_terms(scorer, image, caption, swapped, positive, true_captions, same_group, generator)
    return Losses(sum(terms.values()), {k: v.detach() for k, v in terms.items()})


def _encoder_terms(
    image: Features,
    caption: Features,
    swapped: Features | None,
    positive: Features,
    true_captions: Tensor,
    same_group: Tensor,
) -> dict[str, Tensor]:
    """The local and global levels, see `pretraining_losses`."""
    batch, part = len(image.pooled), len(positive.pooled)
    own = torch.arange(batch, device=image.pooled.device)
    first = _rows(image, own[:part])
    scores = {
        "vlm_local": (GAMMA3_LOCAL, local_scores(image, caption, GAMMA1, GAMMA2)),
        "vlm_global": (GAMMA3, global_scores(image, caption)),
    }
    terms = {}
    for name, (gamma, table) in scores.items():
        rows, excluded = table, true_captions
        if swapped is not None:
            score = local_scores if name == "vlm_local" else global_scores
            column = torch.cat(
                [score(_rows(first, own[i : i + 1]), _rows(swapped, own[i : i + 1])) for i in range(part)]
            )
            # A picture beyond the first P has no swapped caption: its place in the column is left out.
            rows = torch.cat([table, F.pad(column, (0, 0, 0, batch - part))], dim=1)
            excluded = torch.cat([true_captions, (own >= part)[:, None]], dim=1)
        terms[name] = contrastive_loss(gamma * rows, own, excluded) + contrastive_loss(
            gamma * table.T, own, true_captions.T
        )
    terms["vvm_local"] = matched_loss(local_scores(first, positive, GAMMA1, GAMMA2), GAMMA3_LOCAL, same_group)
    terms["vvm_global"] = matched_loss(global_scores(first, positive), GAMMA3, same_group)
    return terms


def _scorer_terms(
    scorer: MatchingScoreBlock,
    image: Features,
    caption: Features,
    swapped: Features | None,
    positive: Features,
    true_captions: Tensor,
    same_group: Tensor,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """The general level, see `pretraining_losses`."""
    part = len(positive.pooled)
    first, matched = _split(image, part)[0], _split(caption, part)[0]
    columns, valid = _hard_negatives(global_scores(image, caption)[:part], true_captions[:part], generator)
    wrong = [(_rows(caption, columns), valid)]
    if swapped is not None:
        wrong.append((swapped, torch.ones_like(valid)))
    terms = {"vlm_general": _scorer_loss(scorer, first, matched, wrong, "caption")}
    columns, valid = _hard_negatives(global_scores(first, positive), same_group, generator)
    terms["vvm_general"] = _scorer_loss(scorer, first, positive, [(_rows(positive, columns), valid)], "image")
    return terms


def _scorer_loss(
    scorer: MatchingScoreBlock,
    image: Features,
    matched: Features,
    wrong: Sequence[tuple[Features, Tensor]],
    kind: str,
) -> Tensor:
    """Binary cross-entropy: half the weight on matched pairs, half on wrong ones (each with its bool of valid rows)."""
    logits = scorer(image, matched, kind)
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, TARGET_TRUE))
    others = []
    for anchor, valid in wrong:
        logits = scorer(image, anchor, kind)
        each = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, TARGET_FALSE), reduction="none")
        others.append((each * valid).sum() / valid.sum().clamp(min=1))
    return (loss + sum(others) / len(others)) / 2


@torch.no_grad()
def _hard_negatives(scores: Tensor, excluded: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One column a row, drawn in proportion to exp(gamma3 * score), and whether the row had any negative.

    Column i is what row i belongs to and never drawn, also where ids made of captions would set the two apart.
    """
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    weights = (GAMMA3 * (scores - 1)).exp().masked_fill(excluded | own, 0.0).cpu()
    valid = weights.sum(1) > 0
    weights[~valid] = 1.0
    columns = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return columns.to(scores.device), valid.to(scores.device)


def _split(features: Features, size: int) -> tuple[Features, Features]:
    return Features(*(part[:size] for part in features)), Features(*(part[size:] for part in features))


def _rows(features: Features, index: Tensor) -> Features:
    return Features(features.local[index], features.pooled[index], features.mask[index])


class Evaluator:
    """How well a matcher finds and ranks captions of a held-out split.

    Captions are sought among 100 (all there are, if fewer). Of a split of more than 2,000 pictures, 20 such pools are
    used, evenly spaced over its shuffled order. Pictures are loaded when they are encoded, and never kept.

    Args:
        records: the split's pictures; the caption number i % captions of each is used.
        image_size: pixels.
        truth: the attributes of synthetic birds, or None.
        device: where to compute.
        seed: draws pools and swapped words.
        vocabulary: where given, captions without a word of it are passed over.
        skip_bad: leave out pictures that cannot be used.

    Attributes:
        pools: positions in the split of the pictures of each pool.
        skipped: files and keys of the pictures left out.

    Raises:
        BadSampleError: a picture cannot be used, and `skip_bad` is off.
        ValueError: no picture can be used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_size: int,
        truth: BirdTruth | None,
        device: torch.device,
        seed: int = 0,
        *,
        vocabulary: Vocabulary | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.images = CaptionedImages(records, image_size, train=False, vocabulary=vocabulary)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
        pools = [order[start : start + POOL] for start in range(0, len(order), POOL)]
        if len(pools) > 1 and len(pools[-1]) < POOL:
            pools.pop()
        count = min(len(pools), POOLS)
        chosen = [index for i in range(count) for index in pools[i * len(pools) // count]]
        # The rest of the split stands in for what cannot be used, and is not looked at otherwise.
        taken = set(chosen)
        rest = [index for index in order if index not in taken]
        usable, self.skipped = training.usable_indices(self.images, skip_bad, chosen + rest, enough=len(chosen))
        self.pools = [usable[start : start + POOL] for start in range(0, len(usable), POOL)]
        self.truth, self.device = truth, device
        self.random = random.Random(seed)
        self.swapped = [
            [swap_caption(c, list(said := read_caption(c)), said, self.random)[0] for c in batch.captions]
            for batch in (self.batches() if truth is not None else [])
        ]

    def batches(self) -> Iterator[Batch]:
        """The pools, each loaded as it is asked for."""
        for pool in self.pools:
            yield collate([self.images[index] for index in pool])

    def ceiling(self) -> float:
        """The R@1 of a matcher that knows the truth.

        Several captions of a pool can be true of one picture. The one that is true of the fewest others is the
        likeliest to be its own, so the matcher takes that one, and one at random where several tie. Source: ours.
        """
        hits = []
        for batch in self.batches():
            if self.truth is None:
                # Without attributes the only captions known to be equally right are the equal ones.
                true = torch.tensor([[a == b for b in batch.captions] for a in batch.captions])
            else:
                true = _true_captions(self.truth, batch)
            pictures = true.sum(0).expand_as(true).masked_fill(~true, len(true) + 1)
            rarest = pictures == pictures.min(1, keepdim=True).values
            hits.append(rarest.diagonal() / rarest.sum(1))
        return float(torch.cat(hits).mean())

    @torch.no_grad()
    def __call__(self, vlm: VLM) -> dict[str, float]:
        """How well the matcher does on the split.

        Returns:
            `local_r1`, `global_r1`: how often a picture's own caption scores highest of its pool. With a scorer,
            `general_hard`: how often that one prefers the picture's own caption to the wrong one of the highest global
            score (what is true of the picture is not wrong); absent if there is no wrong caption. With attributes,
            `local_swapped`, `global_swapped`, and with a scorer `general_swapped`: how often a true caption beats its
            swapped twin.
        """
        vlm.eval()
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for number, batch in enumerate(self.batches()):
            image = vlm.encode_image(batch.images.to(self.device))
            own = torch.arange(len(batch.captions), device=self.device)
            caption = vlm.encode_text(batch.captions)
            scores = {
                "local": local_scores(image, caption, GAMMA1, GAMMA2),
                "global": global_scores(image, caption),
            }
            for name, table in scores.items():
                rows[f"{name}_r1"].append((table.argmax(1) == own).float())
            if vlm.scorer is not None:
                general = vlm.scorer(image, caption, "caption")
                true = _true_captions(self.truth, batch).to(self.device)
                hardest = scores["global"].masked_fill(true, -torch.inf).argmax(1)
                better = general > vlm.scorer(image, _rows(caption, hardest), "caption")
                rows["general_hard"].append(better[~true.all(1)].float())
            if self.swapped:
                twin = vlm.encode_text(self.swapped[number])
                better = {
                    "local": scores["local"].diagonal() > local_scores(image, twin, GAMMA1, GAMMA2).diagonal(),
                    "global": scores["global"].diagonal() > global_scores(image, twin).diagonal(),
                }
                if vlm.scorer is not None:
                    better["general"] = general > vlm.scorer(image, twin, "caption")
                for name, table in better.items():
                    rows[f"{name}_swapped"].append(table.float())
        results = {name: torch.cat(parts) for name, parts in rows.items()}
        return {name: float(values.mean()) for name, values in results.items() if len(values)}


def _true_captions(truth: BirdTruth | None, batch: Batch) -> Tensor:
    """`(B, B)` bool: which pictures satisfy which captions; without attributes, those of one class."""
    if truth is None:
        return batch.class_ids[:, None] == batch.class_ids[None, :]
    return true_pairs(truth.pictures(batch.keys), *said_by(batch.captions))


def pretrain(
    data: str | Path,
    out: str | Path,
    *,
    encoder: str | None = None,
    damsm: str | Path | None = None,
    freeze_encoders: bool = False,
    epochs: int = 30,
    batch: int = 64,
    embed_dim: int | None = None,
    image_size: int | None = None,
    learning_rate: float | None = None,
    image_weights: str | None = None,
    half: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    skip_bad: bool = False,
) -> VLM:
    """Train a matcher and write it to `out`; the same call again goes on after a kill, and leaves a finished one alone.

    A new matcher's vocabulary has the words of the train and of the held-out captions, as those of the published
    pipelines do. No picture trains the vectors of words of the latter alone. A picture's captions without any
    known word are passed over.

    Args:
        data: folder of captioned pictures with a train split, and a validation (else test) split to choose the epoch.
        out: the matcher's file; one that another call made is refused. `out` + ".state" beside it holds what a resumed
            run needs, until the run is done.
        encoder: "conv" (64 pixels, a CPU will do; used when left out), "shufflenet" (64 pixels, thrice as slow; for
            a second matcher that judges) or "inception" (256 pixels, which it enlarges to 299).
        damsm: a published DAMSM text encoder, to start from it and from what `matchers.damsm_pair` finds with it.
        freeze_encoders: train nothing but a scorer for the DAMSM encoders.
        epochs: passes over the train split.
        batch: pictures a step (paper: 64).
        embed_dim: D of the common space.
        image_size: pixels that the pictures are cropped to.
        learning_rate: AdamW's at its peak.
        image_weights: "imagenet" or a file for the Inception trunk, which then stays frozen, as DAMSM's does.
        half: store the weights as float16.
        seed: decides initial weights, order and negatives.
        device: "cuda", "cpu"; the GPU when left out, where there is one.
        precision: "auto", "float32" or "bfloat16"; a resumed run may have another, as another machine may.
        skip_bad: leave out pictures that cannot be read, and those without a caption of known words, and list them in
            `out` + ".skipped.txt". A run that began so goes on so.

    Returns:
        The matcher of the best epoch on the held-out split: by the mean of local and global R@1 or, as frozen encoders
        do not change these, by `general_hard` (see `Evaluator`).

    Raises:
        BadSampleError: a picture cannot be used, and `skip_bad` is off. The message names it.
        OSError, ValueError: the message names the argument or file; or, with the first name that holds NaN or
            infinity, a training that broke down.
    """
    for name, value in (("encoder", encoder), ("embed_dim", embed_dim), ("image_weights", image_weights)):
        if damsm is not None and value is not None:
            raise ValueError(f"{name}: the DAMSM files decide on it, leave it out, got {value!r}")
    if freeze_encoders and damsm is None:
        raise ValueError("freeze_encoders: expected DAMSM encoders with it (--damsm), new ones have to be trained")
    encoder = encoder or ("conv" if damsm is None else "inception")
    if encoder not in DEFAULTS:
        raise ValueError(f"encoder: expected one of {sorted(DEFAULTS)}, got {encoder!r}")
    if encoder != "inception" and image_weights is not None:
        raise ValueError(f"image_weights: only the inception encoder takes any, got {image_weights!r} for {encoder}")
    counts = (("epochs", epochs, 1), ("batch", batch, 2), ("embed_dim", embed_dim, 1), ("image_size", image_size, 1))
    for name, value, least in counts:
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name}: expected a whole number from {least} up, got {value}")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate}")
    training.check_seed(seed)
    default_size, default_rate, default_dim = DEFAULTS[encoder]
    image_size = default_size if image_size is None else image_size
    learning_rate = default_rate if learning_rate is None else learning_rate
    embed_dim = default_dim if embed_dim is None else embed_dim
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    state_file = _state_file(out)
    place = training.choose_device(device)
    dtype = training.choose_precision(place, precision)

    state = None
    if state_file.is_file():
        state = read_file(state_file, f"state of an unfinished run (to begin anew, delete it and {out.name})")
        skip_bad = skip_bad or state.get("skip_bad", False)
    held_out_name = "validation" if "validation" in list_splits(data) else "test"
    (records, lost), (held_out, lost_too) = (
        training.open_records(data, split, skip_bad) for split in ("train", held_out_name)
    )
    pictures = training.digest_records(itertools.chain(records, held_out))
    truth = find_truth(data)
    torch.manual_seed(seed)
    if damsm is None:
        vlm = _new_vlm(itertools.chain(records, held_out), encoder, embed_dim, image_weights)
    else:
        vlm = _damsm_vlm(Path(damsm), Path(data), freeze_encoders)
    settings = {
        "data": Path(data).name, "encoder": encoder, "epochs": epochs, "batch": batch, "embed_dim": vlm.embed_dim,
        "image_size": image_size, "learning_rate": learning_rate, "image_weights": image_weights, "seed": seed,
        "half": half,
    }  # fmt: skip
    if damsm is not None:
        # The contents as well: another pair, or a pair of another vocabulary, may lie in files of the same names.
        settings |= {
            "damsm": Path(damsm).name, "freeze_encoders": freeze_encoders,
            "text_encoder": fingerprint(vlm.text_encoder), "image_encoder": fingerprint(vlm.image_encoder),
            "vocabulary": training.digest(vlm.vocabulary.words),
        }  # fmt: skip
    if out.exists() and state is None and _is_finished(out, settings, pictures):
        print(f"{out}: finished already", flush=True)
        return VLM.load(out)
    training.check_writable(out)
    vlm.notes["pretraining"] = {**settings, "pictures": pictures}
    vlm.to(place)
    trained = [p for p in vlm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-4, betas=(0.9, 0.98))
    steps_per_epoch = max(len(records) // batch, 1)
    total_steps = epochs * steps_per_epoch + 1
    # A tenth of warm-up, and one step at least (with none OneCycleLR divides by zero).
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=total_steps, pct_start=max(0.1, 2 / total_steps)
    )
    best: dict = {"score": -1.0, "weights": None, "results": {}}
    first_epoch = 0
    left_out = training.LeftOut(out.with_name(out.name + ".skipped.txt"), keep=state is not None)
    left_out.add([*lost, *lost_too])
    if state is not None:
        if difference := _difference(state["settings"], settings):
            raise ValueError(
                f"{state_file}: an unfinished run with other settings ({difference}): "
                f"finish it with those, or delete the file and {out.name}"
            )
        if state.get("pictures", pictures) != pictures:
            raise ValueError(
                f"{state_file}: an unfinished run on other data: delete the file and {out.name} to begin anew"
            )
        vlm.load_state_dict(state["vlm"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        best, first_epoch = state["best"], state["epoch"]
        print(f"resuming after epoch {first_epoch} of {epochs}", flush=True)

    evaluate = Evaluator(held_out, image_size, truth, place, vocabulary=vlm.vocabulary, skip_bad=skip_bad)
    if evaluate.skipped:
        left_out.add(evaluate.skipped)
        print(f"left out {len(evaluate.skipped)} of {len(held_out)} pictures of the {held_out_name} split", flush=True)
    judged, usable = sum(map(len, evaluate.pools)), len(held_out) - len(evaluate.skipped)
    if judged < usable:
        print(f"each epoch is judged by {judged} of {usable} pictures of the {held_out_name} split", flush=True)
    ceiling = evaluate.ceiling()
    images = CaptionedImages(records, image_size, train=True, vocabulary=vlm.vocabulary)
    batches = training.endless_batches(
        Pairs(images, records, truth, skip_bad), batch, seed, collate_pairs,
        first_step=first_epoch * steps_per_epoch, device=place, skip_bad=skip_bad,
    )  # fmt: skip
    for epoch in range(first_epoch, epochs):
        _train_mode(vlm)
        bar = training.progress(itertools.islice(batches, steps_per_epoch), total=steps_per_epoch, leave=False)
        bar.set_description(f"epoch {epoch + 1}/{epochs}")
        for number, (first, second) in enumerate(bar):
            left_out.add([*first.skipped, *second.skipped])
            step_seed = training.mix(seed, epoch * steps_per_epoch + number, 2)
            # Dropout draws from the global randomness: it too must not know whether the run was interrupted.
            torch.manual_seed(step_seed)
            losses = _step_losses(vlm, first, second, truth, place, dtype, step_seed)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            if number % 10 == 0:
                _check_finite(losses.terms, epoch, state_file)
                shown = {k: f"{float(v):.2f}" for k, v in losses.terms.items()}
                bar.set_postfix(shown | ({"left out": len(left_out.names)} if left_out.names else {}))
        _check_finite(vlm.state_dict(), epoch, state_file)
        results = evaluate(vlm)
        if freeze_encoders:
            # The last epoch where no caption of the split is wrong, as in a split of one class.
            score = results.get("general_hard", epoch)
        else:
            score = (results["local_r1"] + results["global_r1"]) / 2
        scores = _sentence(results, ceiling, len(evaluate.pools[0]))
        print(f"epoch {epoch + 1}/{epochs}  {held_out_name}: {scores}", flush=True)
        if score > best["score"]:
            best = {"score": score, "weights": copy.deepcopy(vlm.state_dict()), "results": results}
        vlm.notes["pretraining"]["epochs_done"] = epoch + 1
        # The matcher before the state: a kill between the two repeats the epoch and loses nothing.
        _save(vlm, best, out, ceiling, held_out_name, half)
        write_file(
            {
                "settings": settings, "pictures": pictures, "vlm": vlm.state_dict(),
                "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                "best": best, "epoch": epoch + 1, "skip_bad": skip_bad,
            },
            state_file,
        )  # fmt: skip
    # Read before the state goes: what cannot be read would have to be trained anew.
    finished = VLM.load(out)
    state_file.unlink(missing_ok=True)
    left_out.report()
    print(f"wrote {out}", flush=True)
    return finished


def _state_file(out: Path) -> Path:
    return out.with_name(out.name + ".state")


def _is_finished(out: Path, settings: dict, pictures: str) -> bool:
    """Whether `out` is what these settings give, or what they gave before the first state was kept.

    Raises:
        ValueError: it is something else, which must not be overwritten.
    """
    try:
        found = dict(VLM.load(out).notes.get("pretraining", {}))
        done = found.pop("epochs_done", 0)
        difference = _difference(found, {**settings, "pictures": pictures})
    except ValueError as error:
        difference = str(error)
    if difference:
        raise ValueError(f"out: expected a new file, got {out}, made otherwise ({difference}): name another one")
    return done == settings["epochs"]


def _new_vlm(records: Iterable[Record], encoder: str, embed_dim: int, image_weights: str | None) -> VLM:
    vocabulary = Vocabulary.build(caption for record in records for caption in record.captions)
    options = {"weights": image_weights} if image_weights is not None else {}
    image_encoder = build_image_encoder(encoder, embed_dim=embed_dim, **options)
    if image_weights is not None:
        for name, parameter in image_encoder.named_parameters():
            parameter.requires_grad_(name.startswith("emb_"))
    text_encoder = LSTMTextEncoder(len(vocabulary), embed_dim)
    return VLM(image_encoder, text_encoder, vocabulary, MatchingScoreBlock(embed_dim))


def _damsm_vlm(text_encoder: Path, data: Path, freeze_encoders: bool) -> VLM:
    vlm = damsm_pair(text_encoder, data).requires_grad_(not freeze_encoders)
    vlm.scorer = MatchingScoreBlock(vlm.embed_dim)
    return vlm


def _train_mode(vlm: VLM) -> None:
    vlm.train()
    for encoder in (vlm.image_encoder, vlm.text_encoder):
        # Frozen weights, be it of the trunk alone, belong to the BatchNorm statistics that they came with.
        if not all(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()


def _step_losses(
    vlm: VLM,
    first: Batch,
    second: Batch,
    truth: BirdTruth | None,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> Losses:
    generator = torch.Generator().manual_seed(seed)
    captions, swapped = list(first.captions), []
    batch, part = len(captions), (len(captions) + 1) // 2
    if truth is not None:
        rng = random.Random(seed)
        swapped = [swap_caption(c, list(said := read_caption(c)), said, rng)[0] for c in captions[:part]]
    true_captions = _true_captions(truth, first)
    same_group = first.class_ids[:part, None] == second.class_ids[None, :part]
    true_captions, same_group = true_captions.to(device), same_group.to(device)
    # The text encoder trains unless both encoders are frozen.
    encoders_train = all(parameter.requires_grad for parameter in vlm.text_encoder.parameters())
    with training.autocast(device, dtype):
        images = torch.cat([first.images, second.images[:part]]).to(device, memory_format=torch.channels_last)
        with torch.set_grad_enabled(encoders_train):
            image, positive = _split(vlm.encode_image(images), batch)
            caption, twin = _split(vlm.encode_text(captions + swapped, generator), batch)
        twin = twin if swapped else None
        return pretraining_losses(
            image, caption, twin, positive, vlm.scorer, true_captions, same_group, generator, encoders_train
        )


def _check_finite(content: Mapping[str, Tensor], epoch: int, state_file: Path) -> None:
    """End the run before its files are overwritten, where a value is NaN or infinite."""
    if name := not_finite(content):
        raise ValueError(
            f"epoch {epoch + 1}: expected finite numbers, got NaN or infinity in {name}: the training has broken down. "
            + (f"{state_file} stays as it was after epoch {epoch}; " if epoch else "")
            + "begin a run with a lower --learning-rate and another --out"
        )


def _save(vlm: VLM, best: dict, out: Path, ceiling: float, held_out_name: str, half: bool) -> None:
    result = copy.deepcopy(vlm)
    result.load_state_dict(best["weights"])
    result.eval()
    result.notes["held_out"] = {"split": held_out_name, "ceiling_r1": ceiling, **best["results"]}
    result.stamp()
    result.save(out, half=half)


def _sentence(results: dict[str, float], ceiling: float, pool: int) -> str:
    parts = [
        f"R@1 of {pool} local {results['local_r1']:.3f}, global {results['global_r1']:.3f} (ceiling {ceiling:.3f})"
    ]
    if "general_hard" in results:
        parts.append(f"true over hardest wrong: general {results['general_hard']:.3f}")
    if swapped := [
        f"{n} {results[f'{n}_swapped']:.3f}" for n in ("local", "global", "general") if f"{n}_swapped" in results
    ]:
        parts.append(f"true over swapped: {', '.join(swapped)}")
    return "; ".join(parts)


def _difference(old: dict, new: dict) -> str:
    # An earlier release did not keep `half`. The folder's name in `data` is for readers: it changes with the folder
    # that a command runs in, and the digest of the pictures tells data apart.
    old = {"half": new["half"], **old, "data": new["data"]}
    return ", ".join(
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in {**old, **new} if old.get(k) != new.get(k)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin pretrain`."""
    parser.add_argument("--data", type=user_path, required=True, help="folder of captioned pictures")
    parser.add_argument(
        "--out", type=user_path, required=True, help="file to write; the same command resumes after a kill"
    )
    # Not given is something else than given as conv: with --damsm the files decide.
    parser.add_argument(
        "--encoder", choices=sorted(DEFAULTS), default=argparse.SUPPRESS, help="image encoder (default: conv)"
    )
    parser.add_argument(
        "--damsm",
        type=user_path,
        metavar="TEXT_ENCODER",
        help="start from this published DAMSM text encoder and its image encoder",
    )
    parser.add_argument("--freeze-encoders", action="store_true", help="with --damsm, train nothing but the scorer")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--embed-dim", type=int, help="common dimension (inception: 256, others: 128)")
    parser.add_argument("--image-size", type=int, help="pixels (inception: 256, others: 64)")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument(
        "--image-weights", type=name_or_path, help='"imagenet" (torchvision\'s cached file) or a file, for inception'
    )
    parser.add_argument("--half", action="store_true", help="store the weights as float16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be used, and list them")
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin pretrain`."""
    options = {k: v for k, v in vars(arguments).items() if k not in ("command", "run")}
    try:
        pretrain(options.pop("data"), options.pop("out"), **options)
    except BadSampleError as error:
        raise ValueError(f"{error} (--skip-bad leaves out what cannot be used)") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(arguments.out)) from None


def _kept(out: Path) -> str:
    """What an interrupted run has left."""
    if (state_file := _state_file(out)).is_file():
        epoch = read_file(state_file, "state of an unfinished run")["epoch"]
        return f"kept after epoch {epoch}: the same command goes on"
    return f"{out} stays as it is" if out.is_file() else "nothing is kept yet: the same command begins anew"
