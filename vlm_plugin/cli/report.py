"""`vlm-plugin report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm_plugin.report.report import write_report
from vlm_plugin.terminal import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin report`."""
    parser.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="a run's folder, evaluated; several are compared"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        help="file to write (default: report.html in the run's folder; with several runs in the current one)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin report`."""
    runs = arguments.runs
    out = arguments.out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    print(f"wrote {write_report(runs, out)}")
