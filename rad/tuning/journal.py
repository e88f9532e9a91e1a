"""The journal of a folder's studies: a record in each line, written whole or not at all.

Optuna's format, and each record carries a digest of itself; those of earlier versions have none.
Whoever appends holds the folder's lock, so that what stands behind the last line's end is a record
whose writer has died or run out of disk. It was never in effect, and is cut off.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from rad.errors import UsageError
from rad.results import digest

START = b'{"op_code":'
"""How each record begins."""


class Journal(BaseJournalBackend):
    """The records of a file, as Optuna's `JournalStorage` wants them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read = (0, 0, False)

    def mend(self) -> None:
        """Cut off a record that was not written to its end, and say so; the lock is held.

        Raises:
            UsageError: the file is no journal, and untouched, or it cannot be written.
        """
        try:
            with self.file.open("rb+") as stream:
                if stream.seek(0, os.SEEK_END) == 0:
                    return
                stream.seek(-1, os.SEEK_END)
                if stream.read() == b"\n":
                    return
                stream.seek(0)
                whole, newline, tail = stream.read().rpartition(b"\n")
                first = (whole or tail).partition(b"\n")[0]
                if not (first.startswith(START) or (not whole and START.startswith(first))):
                    raise self._foreign()
                stream.truncate(len(whole + newline))
                os.fsync(stream.fileno())
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error
        self._say("its last record was cut off, by a full disk or a crash, and is left out")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from that number on.

        Raises:
            UsageError: a line is damaged.
        """
        number, offset, signed = self._read if self._read[0] == log_number_from else (0, 0, False)
        try:
            with self.file.open("rb") as stream:
                stream.seek(offset)
                lines = stream.read().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(
                f"cannot read {self.file} ({error.strerror}); make it readable, or choose another "
                "experiment_name"
            ) from error
        for line in lines:
            if not line.endswith(b"\n"):  # another process is writing it
                return
            record = self._record(line, number)
            own = record.pop("digest", None)
            if (own is None and signed) or own not in (None, _digest_of(record)):
                raise self._damaged(number)
            number, offset, signed = number + 1, offset + len(line), own is not None
            self._read = (number, offset, signed)
            if number > log_number_from:
                yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records; where that fails, the file is as before.

        Raises:
            UsageError: the file cannot be written.
        """
        signed = [{**record, "digest": _digest_of(record)} for record in logs]
        lines = [f"{json.dumps(record, separators=(',', ':'))}\n" for record in signed]
        try:
            with self.file.open("ab", buffering=0) as stream:
                before = stream.seek(0, os.SEEK_END)
                try:
                    _write("".join(lines).encode(), stream.fileno())
                except OSError:
                    stream.truncate(before)
                    raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        """A line's record; where one that was cut off stands before it, the second one."""
        found = _parsed(line)
        place = line.rfind(START)
        if found is None and place > 0 and _parsed(line[: place - 1]) is None:
            found = _parsed(line[place:])
            if found is not None:
                self._say(
                    f"line {number + 1} begins with a record that was cut off; it is left out"
                )
        if found is None:
            raise self._foreign() if number == 0 else self._damaged(number)
        return found

    def _say(self, text: str) -> None:
        print(f"{self.file}: {text}", file=sys.stderr, flush=True)

    def _damaged(self, number: int) -> UsageError:
        return UsageError(
            f"line {number + 1} of {self.file} is damaged; restore the file from a copy, or go on "
            "under another experiment_name (trials.csv beside it holds the trials so far)"
        )

    def _foreign(self) -> UsageError:
        return UsageError(
            f"{self.file} is no journal of trials; move it elsewhere, or choose another "
            "experiment_name"
        )

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot write {self.file} ({error.strerror}); what is in it is whole: free space or "
            "make it writable, and the same command goes on"
        )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("op_code")) is int else None


def _digest_of(record: dict[str, Any]) -> str:
    return digest(json.dumps(record, sort_keys=True).encode())[:16]


def _write(data: bytes, descriptor: int) -> None:
    """All of it, onto the disk."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
