"""What docstrings, comments and documents name is there: modules, their members, and files."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (
    *ROOT.glob("rad/**/*.py"),
    *ROOT.glob("scripts/**/*.py"),
    *ROOT.glob("configs/**/*.yaml"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "README.md",
    ROOT / "Makefile",
)

NAME = re.compile(r"(?<![\w./-])rad(?:\.[a-zA-Z_]\w*)+")
"""A dotted name, in prose or in code."""

FILE = re.compile(r"(?<![\w/<])((?:rad|scripts|configs|docs|tests)/[\w./-]*\w)(?![\w/<{*])")
"""A path from the root of the repository."""

LINK = re.compile(r"\]\(([^)#:\s]+)\)")
"""What a relative link of a document leads to."""


def missing_names(text: str) -> Iterator[str]:
    for name in NAME.findall(text):
        try:
            _resolve(name)
        except (ImportError, AttributeError):
            yield name


def _resolve(name: str) -> None:
    """Raise ImportError or AttributeError for what is not there.

    A class or function of a module that is a file must be defined in it, not just imported there.
    """
    parts = name.split(".")
    length = max(n for n in range(1, len(parts) + 1) if _is_module(ROOT.joinpath(*parts[:n])))
    if length == len(parts):
        return
    home = ".".join(parts[:length])
    found = importlib.import_module(home)
    is_package = hasattr(found, "__path__")
    for part in parts[length:]:
        found = getattr(found, part)
    defined = getattr(found, "__module__", None) or home
    if not is_package and defined.startswith("rad.") and defined != home:
        raise ImportError(f"{name} is defined in {defined}")


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def missing_files(text: str) -> Iterator[str]:
    yield from (path for path in FILE.findall(text) if not _is_there(ROOT / path))


def missing_links(text: str, folder: Path) -> Iterator[str]:
    yield from (path for path in LINK.findall(text) if not (folder / path).exists())


def _is_there(path: Path) -> bool:
    """Whether a path leads somewhere; Hydra names a file of its groups without the ending."""
    return path.exists() or path.with_name(f"{path.name}.yaml").exists()


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_and_files_are_there(file: Path) -> None:
    text = file.read_text()
    links = missing_links(text, file.parent) if file.suffix == ".md" else ()
    assert [*missing_names(text), *missing_files(text), *links] == []


@pytest.mark.parametrize(
    "name",
    ["rad.sketches.draws", "rad.variants", "rad.nn.Linear.none", "rad.sketches.rounding.Rounding"],
)
def test_a_name_that_has_moved_is_found(name: str) -> None:
    assert list(missing_names(f"See `{name}` and {name}(x), `rad.nn.Linear`.")) == [name, name]


def test_a_file_that_has_moved_is_found() -> None:
    text = "See rad/sketches/draws.py, rad/nn/base.py, [this](no/such.md) and [that](rad/nn)."
    assert list(missing_files(text)) == ["rad/sketches/draws.py"]
    assert list(missing_links(text, ROOT)) == ["no/such.md"]
