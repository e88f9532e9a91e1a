"""Where runs live on disk, how they are written, and how they are read back. Needs no torch."""

from rad.results import seal
from rad.results.files import digest, write_atomic, write_together
from rad.results.folder import RunFolder, difference, run_path
from rad.results.locks import Held, locked
from rad.results.origin import code, machine, name_of, on_device, provenance
from rad.results.tables import (
    NoRuns,
    as_written,
    make_folder,
    metrics,
    read_partial,
    read_summary,
    read_table,
    summaries,
    write_partial,
    write_table,
    write_whole,
)

__all__ = [
    "Held",
    "NoRuns",
    "RunFolder",
    "as_written",
    "code",
    "difference",
    "digest",
    "locked",
    "machine",
    "make_folder",
    "metrics",
    "name_of",
    "on_device",
    "provenance",
    "read_partial",
    "read_summary",
    "read_table",
    "run_path",
    "seal",
    "summaries",
    "write_atomic",
    "write_partial",
    "write_table",
    "write_together",
    "write_whole",
]
