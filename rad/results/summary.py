"""summary.json: what it must hold, and what it vouches for.

Its last field `sha256` is the digest of all others, and `digests` names those of the files beside
it. Summaries of before there were digests are held to a schema instead, and the rows to what
the summary says of them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from rad.results.files import digest

Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _each(check: Check, *names: str) -> Check:
    """An object whose values pass, and that has these names."""

    def passes(value: Any) -> bool:
        return isinstance(value, dict) and {*names} <= {*value} and all(map(check, value.values()))

    return passes


SCHEMA: Mapping[str, Check] = {
    "experiment": _is_text,
    "model": _is_text,
    "dataset": _or_none(_is_text),
    "variant": _is_text,
    "seed": _is_count,
    "budget": _is_text,
    "scale": _or_none(_is_text),
    "keep_fraction": _or_none(_is_number),
    "bits": _or_none(_is_count),
    "batch_size": _is_count,
    "memory": _each(_or_none(_is_count), "parameter_bytes", "saved_bytes", "peak_bytes"),
    "final": _each(_is_number, "train_loss"),
    "iterations": _is_count,
    "seconds_per_iteration": _is_number,
    "device": _is_text,
    "threads": _is_count,
    "versions": _each(_is_text),
    "commit": _is_text,
    "command": _is_text,
}
"""What every run's summary holds."""


def signed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with the digest of all its fields, as JSON gives them back.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot hold.
    """
    fields = {key: value for key, value in summary.items() if key != "sha256"}
    return {**fields, "sha256": _digest_of(fields)}


def _digest_of(fields: Mapping[str, Any]) -> str:
    """Neither the order of the fields nor white space counts."""
    return digest(json.dumps(fields, sort_keys=True, allow_nan=False).encode())


def parse(text: bytes) -> tuple[dict[str, Any], str | None]:
    """The fields of a summary, and what is wrong with them; None where nothing is."""
    try:
        summary = json.loads(text)
        if not isinstance(summary, dict):
            return {}, "is no JSON object"
        if "sha256" in summary:
            own = signed(summary)["sha256"] == summary["sha256"]
            return summary, None if own else "does not match its own digest"
    except (ValueError, RecursionError):  # bytes that are no text among them
        return {}, "is no JSON"
    if "digests" in summary:
        return summary, "lacks its own digest"
    for name, check in SCHEMA.items():
        if name not in summary:
            return summary, f"has no field {name!r}"
        if not check(summary[name]):
            return summary, f"has a field {name!r} that is none of a run's"
    return summary, None


def disagreement(summary: Mapping[str, Any], rows: bytes) -> str | None:
    """How the bytes of metrics.csv differ from what a summary without digests says of them."""
    if not rows.endswith(b"\n"):
        return "is cut off"
    try:
        header, *lines = csv.reader(io.StringIO(rows.decode(), newline=""))
    except (ValueError, csv.Error):
        return "is no table"
    if not lines or any(len(line) != len(header) for line in lines):
        return "is no table, or cut off"
    last = dict(zip(header, lines[-1], strict=True))
    if last.get("iteration") != str(summary["iterations"]):
        return f"does not end with iteration {summary['iterations']}"
    for name, value in summary["final"].items():
        if name in last and last[name] != repr(value):
            return f"ends with {name} {last[name]}, where summary.json has {value}"
    return None
