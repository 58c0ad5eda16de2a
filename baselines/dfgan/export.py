"""`python -m baselines.dfgan.export RUN FILE`: make a run a start for others, as float16 without optimisers."""

import json
import sys
from pathlib import Path

import torch
from easydict import EasyDict

from baselines.dfgan.trainer import DFGAN
from vlm_plugin.tools import gan


def export(run: Path, file: Path) -> None:
    """Write what `DFGAN.load_start` reads, from a run's last checkpoint."""
    options = json.loads((run / "options.json").read_text(encoding="utf-8"))
    matcher = gan.load_matcher(options)
    checkpoint = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    trainer = DFGAN(EasyDict(options["settings"]), matcher.embed_dim, torch.device("cpu"), torch.float32)
    trainer.load_state(checkpoint["trainer"])
    notes = {"steps": checkpoint["step"], "seed": options["seed"], "text_encoder": matcher.fingerprint}
    trainer.save_start(file, {**notes, "with_vlm": bool(options["vlm"]), "settings": options["settings"]})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m baselines.dfgan.export RUN FILE")
    export(Path(sys.argv[1]), Path(sys.argv[2]))
