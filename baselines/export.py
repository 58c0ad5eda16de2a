"""`python baselines/export.py RUN FILE`: make a run a start for others, as float16 without optimisers."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from easydict import EasyDict

from baselines.attngan.trainer import AttnGAN
from baselines.dfgan.trainer import DFGAN
from vlm_plugin.tools.matchers import load_matcher

_TRAINERS = {"attngan": AttnGAN, "dfgan": DFGAN}


def export(run: Path, file: Path) -> None:
    """Write what `Trainer.load_start` reads, from a run's last checkpoint."""
    options = json.loads((run / "options.json").read_text(encoding="utf-8"))
    checkpoint = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    data = Path(options["data"]) if options["data"] else None
    matcher = load_matcher(options["vlm"] or options["text_encoder"], data)
    settings = options["settings"]
    trainer = _TRAINERS[options["baseline"]](EasyDict(settings), matcher, torch.device("cpu"), torch.float32)
    trainer.load_state(checkpoint["trainer"])
    notes = {name: options[name] for name in ("seed", "settings", "matcher", "text_fingerprint")}
    notes |= {"steps": checkpoint["step"], "with_vlm": bool(options["vlm"])}
    trainer.save_start(file, notes | {"trained_with": sorted(trainer.read(run).trained_with)})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python baselines/export.py RUN FILE")
    export(Path(sys.argv[1]), Path(sys.argv[2]))
