"""Files that are written whole or not at all."""

import os
from pathlib import Path

from rad.errors import UsageError


def write_atomic(file: Path, data: bytes) -> None:
    """Replace `file` by `data`, whole or not at all.

    The temporary file has a fixed name, so that a killed process leaves at most one behind, which
    the next write overwrites. Two processes that may write `file` at once need a lock, such as
    that of `RunFolder.open`.

    Raises:
        UsageError: the file cannot be written; what stood there before is untouched.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise UsageError(
            f"cannot write {file} ({error.strerror}); free space or choose another results folder"
        ) from error
