"""Files that are written whole or not at all, and known again by their digests."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from rad.errors import UsageError


def write_atomic(file: Path, data: bytes | memoryview, *, keep: Path | None = None) -> None:
    """Replace `file` by `data`, whole or not at all; what stood there before goes to `keep`.

    The temporary file has a fixed name, so that a killed process leaves at most one behind, which
    the next write removes. It is always a new file: links of that name are never followed. Two
    processes that may write `file` at once need a lock, such as that of `RunFolder.open`.

    Raises:
        UsageError: the file cannot be written; what stood there before is untouched.
    """
    _replace({file: data}, keep)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace several files: none before all of them have been written. As `write_atomic`."""
    _replace(dict(files), None)


def _replace(files: Mapping[Path, bytes | memoryview], keep: Path | None) -> None:
    written = {}
    for file, data in files.items():
        try:
            written[file] = _beside(file, data)
        except OSError as error:
            raise _unwritable(file, error) from error
    for file, temporary in written.items():
        try:
            if keep is not None and file.exists():
                os.replace(file, keep)
            os.replace(temporary, file)
        except OSError as error:
            raise _unwritable(file, error) from error


def _beside(file: Path, data: bytes | memoryview) -> Path:
    """Write `<file>.tmp`, onto the disk."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(temporary, flags, 0o666), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return temporary


def _unwritable(file: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write {file} ({error.strerror}); free space or choose another results folder"
    )


def digest(data: bytes | memoryview) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
