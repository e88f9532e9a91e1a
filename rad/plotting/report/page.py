"""The page as one HTML text: plotly's script, the runs and the page's own script are in it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rad.errors import UsageError
from rad.plotting.style import LABELS, STYLES

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "d": "diamond-tall",
    "P": "cross",
    "X": "x",
    "h": "hexagon",
    "H": "hexagon2",
    "p": "pentagon",
    "8": "octagon",
    "+": "cross-open",
    "*": "star",
    "1": "y-down-open",
    "2": "y-up-open",
}
"""plotly's names of matplotlib's markers."""


def page(runs: Sequence[Mapping[str, Any]], title: str = "Runs") -> str:
    """The page that shows `runs`, which are as `collect` gives them. It needs no network.

    Raises:
        UsageError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UsageError("the report needs plotly: pip install plotly") from error
    looks = {name: [colour, SYMBOLS[marker]] for name, (colour, marker) in STYLES.items()}
    data = json.dumps({"runs": list(runs), "looks": looks, "labels": LABELS}, allow_nan=False)
    here = Path(__file__).parent
    parts = {
        "TITLE": html.escape(title),
        "STYLE": (here / "page.css").read_text(),
        "PLOTLY": get_plotlyjs(),
        "DATA": data.replace("</", "<\\/"),
        "SCRIPT": (here / "page.js").read_text(),
    }
    text = (here / "page.html").read_text()
    before, *rest = text.split("@@")
    return before + "".join(parts.get(part, part) for part in rest)
