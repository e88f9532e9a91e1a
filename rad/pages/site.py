"""A hook of mkdocs: what pages link to outside of `docs/`.

In a checkout, and where a host shows it, links lead to files of the repository. In the site,
figures are copied into it, and other files are named, not linked: the site does not hold them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?:\.\./)+[^)#\s]*)(#[^)]*)?\)")
PLOTS = "plots"


def on_files(files: Any, config: Any) -> Any:
    """The figures join the pages."""
    from mkdocs.structure.files import File

    root = Path(config["docs_dir"]).parent
    for figure in sorted((root / PLOTS).glob("*.png")):
        uri = f"{PLOTS}/{figure.name}"
        files.append(File.generated(config, uri, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text, with links out of `docs/` mended."""
    return mended(markdown, page.file.src_uri)


def mended(markdown: str, page: str) -> str:
    """`markdown` of the page of that name below `docs/`."""
    here = posixpath.dirname(page)

    def target(match: re.Match[str]) -> str:
        image, words, link, _ = match.groups()
        inside = posixpath.normpath(posixpath.join(here, link))
        if not inside.startswith("../"):
            return match[0]
        path = inside.removeprefix("../")
        if path.startswith(f"{PLOTS}/") and path.endswith(".png"):
            return f"{image}[{words}]({posixpath.relpath(path, here or '.')})"
        return words if words.strip("`") == path or "/" in words else f"{words} (`{path}`)"

    return OUTSIDE.sub(target, markdown)
