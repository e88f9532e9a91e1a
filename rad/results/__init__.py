"""Where runs live on disk, how they are written, and how they are read back."""

from rad.results.files import write_atomic
from rad.results.folder import RunFolder, difference, run_path
from rad.results.origin import provenance
from rad.results.tables import metrics, summaries

__all__ = [
    "RunFolder",
    "difference",
    "metrics",
    "provenance",
    "run_path",
    "summaries",
    "write_atomic",
]
