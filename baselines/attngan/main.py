"""AttnGAN, and with `--vlm` VLMGAN+AttnGAN: `python baselines/attngan/main.py [--vlm]`."""

import sys
from pathlib import Path

# Run as a script, from any folder and without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from baselines.needed import explain_missing

with explain_missing("attngan"):
    from vlm_plugin.baselines.attngan.trainer import AttnGAN
    from vlm_plugin.gans.run import run

if __name__ == "__main__":
    run("attngan", Path(__file__).parent, AttnGAN)
