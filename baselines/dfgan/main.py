"""DF-GAN, and with `--vlm` VLMGAN+DFGAN: `python baselines/dfgan/main.py [--vlm]`."""

import sys
from pathlib import Path

# Run as a script, from any folder and without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from baselines.needed import explain_missing

with explain_missing("dfgan"):
    from vlm_plugin.baselines.dfgan.trainer import DFGAN
    from vlm_plugin.gans.run import run

if __name__ == "__main__":
    run("dfgan", Path(__file__).parent, DFGAN)
