"""Files that are written whole or not at all, and known again by their digests."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
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
    written: dict[Path, Path] = {}
    for file, data in files.items():
        temporary = file.with_name(f"{file.name}.tmp")
        try:
            _write_new(temporary, data)
        except OSError as error:
            _remove([*written.values(), temporary])
            raise _unwritable(file, error) from error
        written[file] = temporary
    for file, temporary in written.items():
        try:
            if keep is not None and file.exists():
                os.replace(file, keep)
            os.replace(temporary, file)
        except OSError as error:
            raise _unwritable(file, error) from error


def _write_new(temporary: Path, data: bytes | memoryview) -> None:
    """Write a file of that name, onto the disk; one that is there is removed, not written to."""
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(temporary, flags, 0o666), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _remove(files: Iterable[Path]) -> None:
    """So that a full disk has the room again."""
    for file in files:
        with suppress(OSError):
            file.unlink()


def _unwritable(file: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write {file} ({error.strerror}); free space or choose another results folder"
    )


def digest(data: bytes | memoryview) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
