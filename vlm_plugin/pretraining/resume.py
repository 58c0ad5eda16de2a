"""Whether a run goes on, is done already or is another one: its state file, and what tells two runs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_plugin.files import damaged, digest, previous, read_file, set_aside, write_next
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.pretraining.settings import PretrainSettings


def record_of(settings: PretrainSettings, data: Path, vlm: VLM) -> dict[str, Any]:
    """What tells one run from another, as the matcher's notes and the state file keep it.

    Args:
        settings: of `filled_in`.
        data: the data folder.
        vlm: the matcher before its first step.
    """
    record = {
        "data": data.name, "encoder": settings.encoder, "epochs": settings.epochs, "batch": settings.batch,
        "embed_dim": vlm.embed_dim, "image_size": settings.image_size, "learning_rate": settings.learning_rate,
        "image_weights": settings.image_weights, "seed": settings.seed, "half": settings.half,
    }  # fmt: skip
    if settings.damsm is not None:
        # The contents as well: another pair, or a pair of another vocabulary, may lie in files of the same names.
        record |= {
            "damsm": Path(settings.damsm).name, "freeze_encoders": settings.freeze_encoders,
            "text_encoder": fingerprint(vlm.text_encoder), "image_encoder": fingerprint(vlm.image_encoder),
            "vocabulary": digest(vlm.vocabulary.words),
        }  # fmt: skip
    return record


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What two records disagree in, for a message; empty where they agree."""
    # An earlier release did not keep `half`. The folder's name in `data` is for readers: it changes with the folder
    # that a command runs in, and the digest of the pictures tells data apart.
    old = {"half": new["half"], **old, "data": new["data"]}
    return ", ".join(
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in {**old, **new} if old.get(k) != new.get(k)
    )


def is_finished(out: Path, record: dict[str, Any], pictures: str) -> bool:
    """Whether a matcher's file is what this run gives, or what it gave before its first state was kept.

    Args:
        out: the file.
        record: of `record_of`.
        pictures: digest of the data.

    Raises:
        ValueError: it is something else, which must not be overwritten.
    """
    try:
        found = dict(VLM.load(out).notes.get("pretraining", {}))
        done = found.pop("epochs_done", 0)
        difference = differences(found, {**record, "pictures": pictures})
    except ValueError as error:
        difference = str(error)
    if difference:
        raise ValueError(f"out: expected a new file, got {out}, made otherwise ({difference}): name another one")
    return done == record["epochs"]


def state_file_of(out: Path) -> Path:
    """The file, beside the matcher's, that holds what a resumed run needs."""
    return out.with_name(out.name + ".state")


def read_state(out: Path) -> dict[str, Any] | None:
    """What `write_state` wrote last or, where that cannot be read, before; None where there is neither.

    Raises:
        ValueError: neither file can be read.
    """
    file = state_file_of(out)
    older = previous(file)
    if not file.is_file() and not older.is_file():
        return None
    try:
        return _read(file, out)
    except (OSError, ValueError) as error:
        if not older.is_file():
            raise
        state = _read(older, out)
        set_aside(file)
        print(f"{error}: going on from the one before, {older}, after epoch {state['epoch']}", flush=True)
        return state


def _read(file: Path, out: Path) -> dict[str, Any]:
    what = f"state of an unfinished run (to begin anew, delete it and {out.name})"
    state = read_file(file, what)
    parts = {"settings": dict, "vlm": dict, "optimizer": dict, "schedule": dict, "best": dict, "epoch": int}
    wrong = [n for n, kind in parts.items() if not (isinstance(state, dict) and isinstance(state.get(n), kind))]
    if wrong:
        raise ValueError(f"{file}: expected the {what}, got something else: no {', '.join(wrong)}")
    return state


def forget_state(out: Path) -> None:
    """Take away what `write_state` wrote, the newest last: a kill in between leaves it."""
    file = state_file_of(out)
    for other in (damaged(file), previous(file), file):
        other.unlink(missing_ok=True)


def write_state(state: dict[str, Any], out: Path) -> None:
    """Write `settings` (of `record_of`), `pictures`, `vlm`, `optimizer`, `schedule`, `best`, `epoch`, whether bad
    pictures are skipped (`skip_bad`) and anything was `learned` and, where there were some, `bad_steps`."""
    write_next(state, state_file_of(out))


def check_same_run(state: dict[str, Any], record: dict[str, Any], pictures: str, out: Path) -> None:
    """Refuse to go on from the state of another run.

    Args:
        state: of `read_state`.
        record: of `record_of`.
        pictures: digest of the data.
        out: the matcher's file, for messages.

    Raises:
        ValueError: other settings or data; the message says which, and what to do.
    """
    file = state_file_of(out)
    if difference := differences(state["settings"], record):
        raise ValueError(
            f"{file}: an unfinished run with other settings ({difference}): "
            f"finish it with those, or delete the file and {out.name}"
        )
    # An earlier release did not keep `pictures`.
    if state.get("pictures", pictures) != pictures:
        raise ValueError(f"{file}: an unfinished run on other data: delete the file and {out.name} to begin anew")


def what_is_kept(out: Path) -> str:
    """What an interrupted run has left, in words."""
    if (state := read_state(out)) is not None:
        return f"kept after epoch {state['epoch']}: the same command goes on"
    return f"{out} stays as it is" if out.is_file() else "nothing is kept yet: the same command begins anew"
