"""AttnGAN, with `--vlm` VLMGAN+AttnGAN: `python baselines/attngan/main.py`, the same as `vlm-plugin train attngan`."""

import sys
from pathlib import Path

# A script of the checkout runs from any folder and without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vlm_plugin.cli.scripts import train_command

if __name__ == "__main__":
    train_command("attngan")
