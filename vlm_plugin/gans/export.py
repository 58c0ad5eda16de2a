"""Makes a run a start for others: one file of float16 weights, without optimisers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vlm_plugin.files import check_writable, read_checkpoint, read_file, whole
from vlm_plugin.gans.find import BASELINES, baseline
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.matcher.choose import load_matcher


def export(run: Path, file: Path) -> None:
    """Write what `Trainer.load_start` reads, from a run's last checkpoint.

    Args:
        run: the run's folder.
        file: a new file, or one that this wrote for the same baseline.

    Raises:
        OSError, ValueError: no run, or a file of another kind; the message names it.
    """
    if not (run / "options.json").is_file():
        raise FileNotFoundError(f"{run}: expected a run's folder with options.json")
    with whole(run / "options.json"):
        options = json.loads((run / "options.json").read_text(encoding="utf-8"))
        if options["baseline"] not in BASELINES:
            raise KeyError(options["baseline"])
        build = baseline(options["baseline"]).trainer
        settings = build.settings_type.of(options["settings"])
    saved = build.read(run)
    _check_replaceable(file, build)
    checkpoint = read_file(run / "checkpoint.pt", "checkpoint")
    data = Path(options["data"]) if options["data"] else None
    matcher = load_matcher(options["vlm"] or options["text_encoder"], data)
    trainer = build(settings, matcher, torch.device("cpu"), torch.float32)
    trainer.load_state(checkpoint["trainer"])
    notes = {name: options[name] for name in ("seed", "settings", "matcher", "text_fingerprint")}
    notes |= {"steps": checkpoint["step"], "with_vlm": bool(options["vlm"])}
    trainer.save_start(file, notes | {"trained_with": sorted(saved.trained_with)})


def _check_replaceable(file: Path, build: type[Trainer]) -> None:
    """Refuse a file that cannot be written, or that would be lost."""
    if file.exists():
        try:
            read_checkpoint(file, f"vlm_plugin.{build.name}", 1)
        except (OSError, ValueError) as error:
            what = f"expected a new file, or a packaged generator of {build.name}"
            raise ValueError(f"{file}: {what}, got something else ({error}): name another one") from None
    check_writable(file)
