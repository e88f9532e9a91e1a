"""The numbers of README and docs, from the files in results: `python scripts/claims.py`.

Writes the tables and numbers that comments in the pages call for, draws plots/headline.png, and
lists the numbers in prose that no file has, and results whose commit is not in the history and not
said to be. `--check` writes nothing; exit status 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

import _cli  # the signals first, and one line for what is refused

from rad.errors import UsageError
from rad.pages import Page, namespace, untraced
from rad.pages.commits import lost_commits
from rad.pages.figure import headline_figure
from rad.pages.runs import Runs
from rad.pages.settings import tables
from rad.plotting import save
from rad.results import write_atomic

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    options = _parser().parse_args(arguments)
    files = options.pages or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise UsageError(f"there is no {', '.join(absent)}: name Markdown files")
    functions = namespace(ROOT / "results", **tables(ROOT / "configs"))
    wrong = 0
    for file in files:
        page = Page(file, functions)
        text, made = file.read_text(), page.made()
        if text != made and options.check:
            wrong += 1
            changed = difflib.unified_diff(text.splitlines(), made.splitlines(), lineterm="", n=0)
            print(f"{file}: not as the results have it; run python scripts/claims.py")
            print("\n".join(line for line in changed if line[:2] not in ("--", "++", "@@")))
        elif text != made:
            write_atomic(file, made.encode())
            print(f"wrote {file}")
        missing = untraced(made, ROOT / "results")
        if missing:
            wrong += 1
            print(f"{file}: no file of the results that it links to has {', '.join(missing)}")
    lost = lost_commits(ROOT, (ROOT / "docs" / "results_format.md").read_text())
    print("".join(f"{line}; say so in docs/results_format.md\n" for line in lost), end="")
    wrong += len(lost)
    if not options.check and not options.pages:
        for drawn in save(headline_figure(Runs(ROOT / "results")), ROOT / "plots" / "headline.png"):
            print(f"wrote {drawn}")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, report what differs")
    return parser


if __name__ == "__main__":
    _cli.end(main)
