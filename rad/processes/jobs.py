"""Jobs of a sweep, handed to the process that does them: each is a list of overrides."""

from __future__ import annotations

import json


def as_word(jobs: list[list[str]]) -> str:
    """As one word that Hydra and OmegaConf leave as it is."""
    return f"x{json.dumps(jobs).encode().hex()}"


def of_word(word: str) -> list[list[str]]:
    """The inverse of `as_word`."""
    jobs: list[list[str]] = json.loads(bytes.fromhex(word[1:]))
    return jobs
