"""Zip archives that carry a digest of themselves, as checkpoints do.

The comment at an archive's end is `sha256:` and the SHA-256 of all that stands before these words.
Whatever reads zip archives reads a sealed one.
"""

import io
import struct

from rad.results.files import digest

WORD = b"sha256:"
COMMENT = len(WORD) + 64
END = b"PK\x05\x06"
"""The signature of the last record, of 22 bytes where there is no comment: its length ends it."""


def seal(archive: io.BytesIO) -> memoryview:
    """Add its digest to an archive that has no comment yet, in place; all its bytes."""
    with archive.getbuffer() as body:
        assert _bare(body)
        body[-2:] = struct.pack("<H", COMMENT)
        own = digest(body)
    archive.seek(0, io.SEEK_END)
    archive.write(WORD + own.encode())
    return archive.getbuffer()


def damage(archive: bytes) -> str | None:
    """What is wrong with a sealed archive; None where nothing is."""
    if _bare(archive):
        return "it has no digest: something else has written it"
    body, comment = memoryview(archive)[:-COMMENT], archive[-COMMENT:]
    if not comment.startswith(WORD):
        return "its end is missing"
    if comment != WORD + digest(body).encode():
        return "it does not match its digest"
    return None


def _bare(archive: bytes | memoryview) -> bool:
    return archive[-22:-18] == END and archive[-2:] == b"\0\0"
