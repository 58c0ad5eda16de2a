"""`python -m vlm_plugin`: the command line."""

import sys

from vlm_plugin.cli.main import main

sys.exit(main())
