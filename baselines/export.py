"""`python baselines/export.py RUN FILE`: make a run a start for others, as float16 without optimisers."""

import sys
from pathlib import Path

# A script of the checkout runs from any folder and without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm_plugin.terminal import escape_unprintable, explain_missing

with explain_missing("export"):
    from vlm_plugin.gans.export import export

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python baselines/export.py RUN FILE")
    escape_unprintable()
    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"export: {error}")
