"""Writing figures."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from rad.errors import UsageError
from rad.plotting.style import RC
from rad.results import write_together


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `path` as PNG (300 dpi) and PDF, each whole or not at all; equal figures, equal bytes.

    Raises:
        UsageError: a suffix other than .png and .pdf, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix not in ("", ".png", ".pdf"):
        raise UsageError(f"{path} ends in {path.suffix}; leave that out, or give .png or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {path.parent} ({error.strerror}); choose another output"
        ) from error
    png, pdf = path.with_suffix(".png"), path.with_suffix(".pdf")
    with mpl.rc_context(RC):
        rendered = {
            png: _rendered(figure, "png", {"Software": None}),
            pdf: _rendered(figure, "pdf", {"CreationDate": None}),
        }
    write_together(rendered)
    return png, pdf


def _rendered(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=300, metadata=metadata)
    return buffer.getvalue()
