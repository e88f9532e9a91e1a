"""Train and draw a figure or table of the paper afresh: `python scripts/reproduce.py 5b`.

In a folder of its own, beside the committed results, which stay as they are. Run again after an
interruption it goes on where it was. `make reproduce FIG=5b` is the same.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import _cli  # the signals first, and one line for what is refused

from rad.errors import UsageError
from rad.pages.reproduction import REPRODUCTIONS, reproduction

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """The exit status: that of the first command that fails."""
    options = _parser().parse_args(arguments)
    wanted = reproduction(options.figure)
    committed = ROOT / "results" / wanted.committed.split("/")[0]
    if (ROOT / options.results).resolve() == (ROOT / "results").resolve():
        raise UsageError("--results is the folder of the committed results; name another")
    lines = wanted.lines(options.results, options.scale)
    if committed.is_dir():
        print(f"a committed result is in {committed.relative_to(ROOT)}; this makes another")
    for line in lines:
        print(line, flush=True)
        if options.dry_run:
            continue
        _, *words = shlex.split(line)
        done = subprocess.run([sys.executable, *words], cwd=ROOT)
        if done.returncode:
            return done.returncode
    return 0


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(each.name for each in REPRODUCTIONS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", help=f"one of {names}")
    parser.add_argument("--results", default="my_results", help="where (default: my_results)")
    parser.add_argument("--scale", default="", help="paper, cpu or smoke (default: the table's)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as refused:
        _cli.refuse(refused)
