"""Train and draw a figure or table of the paper afresh: `python scripts/reproduce.py 5b`.

In a folder of its own, beside the committed results, which stay as they are. Run again after an
interruption it goes on where it was. `make reproduce FIG=5b` is the same.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import _cli  # the signals first, and one line for what is refused

from rad.errors import UsageError
from rad.pages.reproduction import REPRODUCTIONS, reproduction
from rad.processes.signals import Stopped

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """The exit status: that of the first command that fails."""
    options = _parser().parse_args(arguments)
    wanted = reproduction(options.figure)
    committed = ROOT / "results" / wanted.committed.split("/")[0]
    if (ROOT / options.results).resolve() == (ROOT / "results").resolve():
        raise UsageError("--results is the folder of the committed results; name another")
    if not re.fullmatch(r"[\w./+-]+", options.results):
        raise UsageError(
            f"--results is {options.results!r}; use letters, digits and _ . - + / alone"
        )
    lines = wanted.lines(options.results, options.scale)
    if committed.is_dir():
        print(f"a committed result is in {committed.relative_to(ROOT)}; this makes another")
    for line in lines:
        print(line, flush=True)
        if options.dry_run:
            continue
        _, *words = shlex.split(line)
        if status := run(words):
            return status
    return 0


def run(words: Sequence[str]) -> int:
    """The exit status of a Python program, which ends, and has saved, before a signal ends this."""
    with subprocess.Popen([sys.executable, *words], cwd=ROOT) as program:
        try:
            return program.wait()
        except Stopped as stopped:
            if stopped.number == signal.SIGTERM:  # Ctrl-C reaches it by itself
                program.terminate()
            raise


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(each.name for each in REPRODUCTIONS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", help=f"one of {names}")
    parser.add_argument("--results", default="my_results", help="where (default: my_results)")
    parser.add_argument("--scale", default="", help="paper, cpu or smoke (default: the table's)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser


if __name__ == "__main__":
    _cli.end(main)
