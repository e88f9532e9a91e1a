"""Where runs live on disk, how they are written, and how they are read back. Needs no torch."""

from rad.results.files import write_atomic
from rad.results.folder import RunFolder, difference, run_path
from rad.results.origin import machine, name_of, provenance
from rad.results.tables import make_folder, metrics, summaries, write_table

__all__ = [
    "RunFolder",
    "difference",
    "machine",
    "make_folder",
    "metrics",
    "name_of",
    "provenance",
    "run_path",
    "summaries",
    "write_atomic",
    "write_table",
]
