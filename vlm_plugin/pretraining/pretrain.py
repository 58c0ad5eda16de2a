"""Pretraining of the matcher: local, global and general level, with caption anchors and with image anchors.

Sources: the three scores are the paper's; the contrastive losses, the negatives, the positives of the image-image pairs
and the schedule are ours (docs/method.md).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm_plugin.data import CaptionedImages, Record, find_truth, list_splits
from vlm_plugin.data.records import digest_records
from vlm_plugin.files import check_writable, digest, not_finite, read_file, write_file
from vlm_plugin.matcher.choose import damsm_pair
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.matcher.image_encoders import build_image_encoder
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.pretraining.evaluator import Evaluator, scores_in_words
from vlm_plugin.pretraining.losses import step_losses
from vlm_plugin.pretraining.pairs import Pairs, collate_pairs
from vlm_plugin.training.device import choose_device, choose_precision
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.skipped import LeftOut, open_records
from vlm_plugin.training.stream import check_seed, endless_batches, mix

# Encoder -> image size, learning rate, common dimension.
DEFAULTS = {"conv": (64, 1e-3, 128), "inception": (256, 2e-4, 256), "shufflenet": (64, 1e-3, 128)}


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
    check_seed(seed)
    default_size, default_rate, default_dim = DEFAULTS[encoder]
    image_size = default_size if image_size is None else image_size
    learning_rate = default_rate if learning_rate is None else learning_rate
    embed_dim = default_dim if embed_dim is None else embed_dim
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    state_file = state_file_of(out)
    place = choose_device(device)
    dtype = choose_precision(place, precision)

    state = None
    if state_file.is_file():
        state = read_file(state_file, f"state of an unfinished run (to begin anew, delete it and {out.name})")
        skip_bad = skip_bad or state.get("skip_bad", False)
    held_out_name = "validation" if "validation" in list_splits(data) else "test"
    (records, lost), (held_out, lost_too) = (open_records(data, split, skip_bad) for split in ("train", held_out_name))
    pictures = digest_records(itertools.chain(records, held_out))
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
            "vocabulary": digest(vlm.vocabulary.words),
        }  # fmt: skip
    if out.exists() and state is None and _is_finished(out, settings, pictures):
        print(f"{out}: finished already", flush=True)
        return VLM.load(out)
    check_writable(out)
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
    left_out = LeftOut(out.with_name(out.name + ".skipped.txt"), keep=state is not None)
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
    batches = endless_batches(
        Pairs(images, records, truth, skip_bad), batch, seed, collate_pairs,
        first_step=first_epoch * steps_per_epoch, device=place, skip_bad=skip_bad,
    )  # fmt: skip
    for epoch in range(first_epoch, epochs):
        _train_mode(vlm)
        bar = progress(itertools.islice(batches, steps_per_epoch), total=steps_per_epoch, leave=False)
        bar.set_description(f"epoch {epoch + 1}/{epochs}")
        for number, (first, second) in enumerate(bar):
            left_out.add([*first.skipped, *second.skipped])
            step_seed = mix(seed, epoch * steps_per_epoch + number, 2)
            # Dropout draws from the global randomness: it too must not know whether the run was interrupted.
            torch.manual_seed(step_seed)
            losses = step_losses(vlm, first, second, truth, place, dtype, step_seed)
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
        scores = scores_in_words(results, ceiling, len(evaluate.pools[0]))
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


def state_file_of(out: Path) -> Path:
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


def _difference(old: dict, new: dict) -> str:
    # An earlier release did not keep `half`. The folder's name in `data` is for readers: it changes with the folder
    # that a command runs in, and the digest of the pictures tells data apart.
    old = {"half": new["half"], **old, "data": new["data"]}
    return ", ".join(
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in {**old, **new} if old.get(k) != new.get(k)
    )
