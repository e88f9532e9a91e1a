"""Tables that scripts leave, with their provenance beside them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rad.errors import UsageError
from rad.results import write_atomic


def write(file: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> Path:
    """Write `file` (CSV) and the summary beside it (JSON), each whole or not at all.

    Raises:
        UsageError: the folder cannot be made, or a file cannot be written.
    """
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {file.parent} ({error.strerror}); choose output=") from error
    write_atomic(file, text.getvalue().encode())
    write_atomic(file.with_suffix(".json"), (json.dumps(summary, indent=2) + "\n").encode())
    return file
