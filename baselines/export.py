"""`python baselines/export.py RUN FILE`: make a run a start for others, as float16 without optimisers."""

import sys
from pathlib import Path

# A script of the checkout runs from any folder and without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm_plugin.cli.scripts import export_command

if __name__ == "__main__":
    export_command()
