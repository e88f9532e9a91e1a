"""What a run's numbers depend on beside its configuration, from each resumption to the next.

A run that is never resumed has one segment. Each names the update it starts after (`from`), and the
later ones only what has changed since the one before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any

import torch

from rad.results import code, name_of

Segment = dict[str, Any]

TYPES: dict[str, Any] = {
    "from": int,
    "commit": str | None,
    "code": str,
    "versions": dict,
    "device": str,
    "threads": int,
    "kernels": str | None,
    "data": str | None,
    "processes": int,
    "batch": int,
}
"""What a segment may name; `data` is the data set's digest, `kernels` the variable RAD_KERNELS,
`processes` how many train together, `batch` the examples that they have between them."""

PACKAGES = ("numpy", "numba", "triton")


def here(
    device: torch.device, data: str | None, commit: str | None, processes: int, batch: int
) -> Segment:
    """What the updates from here on depend on."""
    return {
        "commit": commit,
        "code": code(),
        "versions": {"torch": str(torch.__version__), **_versions()},
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "kernels": os.environ.get("RAD_KERNELS"),
        "data": data,
        "processes": processes,
        "batch": batch,
    }


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def latest(segments: Sequence[Segment]) -> Segment:
    """All that the last segment depends on."""
    found: Segment = {}
    for segment in segments:
        found |= segment
    return found


def extended(segments: Sequence[Segment], now: Segment, iteration: int) -> list[Segment]:
    """With one more, which starts after `iteration` updates."""
    before = latest(segments)
    new = {key: value for key, value in now.items() if key not in before or before[key] != value}
    return [*segments, {"from": iteration, **new}]


def differences(there: Segment, now: Segment) -> list[str]:
    """What can make other numbers, in words; the data set and the batch aside."""
    if "code" not in there:
        return ["code, versions, device or threads (the checkpoint does not name them)"]
    found = []
    if there["code"] != now["code"]:
        commits = there["commit"], now["commit"]
        found.append(f"code{_pair(*commits) if all(commits) and commits[0] != commits[1] else ''}")
    for name in sorted(there["versions"].keys() | now["versions"].keys()):
        old, new = (segment["versions"].get(name, "none") for segment in (there, now))
        found += [f"{name}{_pair(old, new)}"] if old != new else []
    there = {"processes": 1, **there}
    for name in ("device", "threads", "kernels", "processes"):
        if there[name] != now[name]:
            found.append(f"{name}{_pair(there[name], now[name])}")
    return found


def _pair(there: object, now: object) -> str:
    return f" ({there} there, {now} here)"


def are_segments(value: object) -> bool:
    """Whether a checkpoint's value is a list of segments in their order."""
    if not isinstance(value, list) or not value:
        return False
    if not all(isinstance(each, dict) and each.keys() <= TYPES.keys() for each in value):
        return False
    typed = all(isinstance(v, TYPES[key]) for each in value for key, v in each.items())
    starts = [each.get("from", -1) for each in value]
    return typed and starts[0] == 0 and starts == sorted(starts)
