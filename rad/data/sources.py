"""A text that needs no download: the sources of Python's standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rad.errors import UsageError

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Of the text: what is neither printable ASCII nor the end of a line stands as a question mark."""


def python_sources(characters: int) -> str:
    """The first so many characters of the modules that lie in the standard library's own folder.

    They follow each other in the order of a hash of their names, so that no part of the text is of
    one subject. Which text it is depends on the version of Python: compare digests.

    Raises:
        UsageError: the modules hold fewer characters.
    """
    found: list[str] = []
    missing = characters
    for text in _modules():
        found.append(text[:missing])
        missing -= len(found[-1])
        if not missing:
            return "".join(found)
    raise UsageError(
        f"dataset.characters is {characters}, and the standard library here has "
        f"{characters - missing}: choose fewer"
    )


def _modules() -> Iterator[str]:
    files = Path(sysconfig.get_path("stdlib")).glob("*.py")
    for file in sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest()):
        text = file.read_text(encoding="utf-8", errors="replace").expandtabs()
        yield "".join(each if each in CHARACTERS else "?" for each in text)
