"""Add the pages outside docs/ to the documentation site, and rewrite the links between the two.

Usage: mkdocs calls this file as a hook (`hooks:` in mkdocs.yml) during `make docs`.

In the repository the README links to docs/running.md and docs/running.md to ../cluster/README.md,
so that both work where the files lie. On the site all pages are neighbours. Each page from outside
is added under its name in `OUTSIDE`, and links are rewritten to follow.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "clusters.md",
}
"""Path in the repository -> path on the site."""

FOLDERS = {"cluster/": "clusters.md"}
"""Folders of the repository that a page links to, and the page that describes each."""

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)|(?<=src=\")([^\"]+)|(?<=href=\")([^\"#]+)")
_FILE_AS_TEXT = re.compile(r"\[([\w./]+\.md)\]\(([\w./]+\.md)(#[\w-]*)?\)")
"""A link with the file's name as its text. The repository shows this name; the site shows the
page's title."""
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `OUTSIDE`."""
    from mkdocs.structure.files import File

    for source, target in OUTSIDE.items():
        files.append(
            File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8"))
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from places in the repository to places on the site."""
    origins = {target: source for source, target in OUTSIDE.items()}
    place = page.file.src_uri
    moved = rewritten(markdown, origins.get(place, f"docs/{place}"), place)
    titles = dict(_titles(config.nav))
    return _FILE_AS_TEXT.sub(
        lambda m: f"[{titles.get(_named(m[2], place), m[1])}]({m[2]}{m[3] or ''})", moved
    )


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """Map each path on the site to its title in the navigation."""
    for entry in nav:
        for title, inner in entry.items():
            if isinstance(inner, str):
                yield inner, title
            else:
                yield from _titles(inner)


def _named(link: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(target), link))


def rewritten(markdown: str, origin: str, target: str) -> str:
    """The page `origin` (in the repository) as `target` (on the site), with rewritten links; code
    is unchanged."""
    parts = _FENCE.split(markdown)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda m: _moved(m[0], origin, target), part)
        for part in parts
    )


def _moved(link: str, origin: str, target: str) -> str:
    if re.match(r"[a-z]+:|/|#", link):
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    path = path + "/" if link.endswith("/") else path
    on_site = OUTSIDE.get(path) or FOLDERS.get(path)
    if on_site is None and path.startswith("docs/"):
        on_site = path.removeprefix("docs/")
    if on_site is None:
        return link  # left as it is: mkdocs reports a dead link
    return posixpath.relpath(on_site, posixpath.dirname(target) or ".")
