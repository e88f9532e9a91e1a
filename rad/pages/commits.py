"""Results whose code cannot be looked up: their commit is in no history that is here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rad.errors import UsageError


def lost_commits(root: Path, said: str) -> list[str]:
    """A line for each experiment of `root/results` with such commits that `said` does not name.

    `said` is the text of a page. None are found where there is no whole history to look in: no
    repository, or a shallow clone.
    """
    shallow = _git(root, "rev-parse", "--is-shallow-repository")
    if shallow is None or shallow.strip() != "false":
        return []
    known = set((_git(root, "rev-list", "HEAD") or "").split())
    lost: dict[str, set[str]] = {}
    for experiment, commit in _commits(root / "results"):
        if commit not in known:
            lost.setdefault(experiment, set()).add(commit)
    return [
        f"results/{experiment} names {', '.join(sorted(commits))}, not in the history"
        for experiment, commits in sorted(lost.items())
        if not all(f"results/{experiment}" in said and each[:7] in said for each in commits)
    ]


def _commits(results: Path) -> Iterator[tuple[str, str]]:
    """The experiment and the commit, `-dirty` aside, of each file that has one."""
    for file in sorted(results.rglob("*.json")):
        try:
            found = json.loads(file.read_bytes())
        except ValueError as error:
            raise UsageError(f"{file} is no JSON ({error}); restore it from git") from error
        commit = found.get("commit") if isinstance(found, dict) else None
        if commit:
            yield file.relative_to(results).parts[0], str(commit).removesuffix("-dirty")


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
