"""Lets the pages link as GitHub reads them: relative to the file, also to files outside of this folder.

A page may include a file of the repository (`--8<-- "FILE"`); its heading gives way to the page's. A link to an image
outside of `docs/` brings the image into the site. Links into `docs/`, and to files that a page includes, become links
of the site. Links to other files of the repository are refused: pages name them in backticks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

log = get_plugin_logger("docs")
DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(\]\()([^)\s#]+)")
INCLUDE = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)


included_by: dict[Path, Path] = {}


def on_files(files: Files, *, config: Any) -> Files:
    """Notes which page includes which file."""
    for file in files.documentation_pages():
        for name in INCLUDE.findall(file.content_string):
            included_by[ROOT / name] = DOCS / file.src_uri
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Includes the files that a page asks for, and rewrites the links that leave `docs/`."""
    at = DOCS / page.file.src_uri

    def included(match: re.Match[str]) -> str:
        source = ROOT / match[1]
        text = source.read_text(encoding="utf-8").partition("\n")[2]
        return _relinked(text, source, at, config, files)

    return INCLUDE.sub(included, _relinked(markdown, at, at, config, files))


def _relinked(text: str, source: Path, page: Path, config: Any, files: Files) -> str:
    """The text of `source` with its links as they have to be in `page`."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if ":" in target:
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        path = included_by.get(path, path)
        if path.is_relative_to(DOCS):
            return match[1] + os.path.relpath(path, page.parent)
        if path.suffix not in (".png", ".svg", ".webp") or not path.is_file():
            log.warning(f"{source.relative_to(ROOT)} links to {target}: no page and no image; name files in backticks")
            return match[0]
        uri = f"repository/{path.relative_to(ROOT)}"
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        return match[1] + os.path.relpath(DOCS / uri, page.parent)

    return LINK.sub(link, text)
