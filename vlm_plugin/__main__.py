"""`python -m vlm_plugin`: the command line."""

import sys

from vlm_plugin.tools.cli import main

sys.exit(main())
