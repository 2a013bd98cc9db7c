"""The documentation site: links of pages that lie outside docs/, and what the strict build
finds."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "cluster" / "README.md",
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
OPENS = [page for page in sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_follow_pages_from_the_repository_to_the_site(hook: ModuleType) -> None:
    readme = (
        "See [data](docs/data.md#mixtures), [up](cluster/README.md), "
        '[a site](https://x.org/a) <img src="docs/images/plan.svg">'
    )
    assert hook.rewritten(readme, "README.md", "index.md") == (
        "See [data](data.md#mixtures), [up](clusters.md), "
        '[a site](https://x.org/a) <img src="images/plan.svg">'
    )
    assert (
        hook.rewritten("[c](../cluster/README.md) [d](data.md)", "docs/running.md", "running.md")
        == "[c](clusters.md) [d](data.md)"
    )
    inner = hook.rewritten(
        "[law](../../scaling_laws.md)",
        "docs/studies/isoflop_cpu/README.md",
        "studies/isoflop_cpu/README.md",
    )
    assert inner == "[law](../../scaling_laws.md)"
    fenced = "```text\n[a](docs/data.md)\n```\n[a](docs/data.md)"
    assert (
        hook.rewritten(fenced, "README.md", "index.md")
        == "```text\n[a](docs/data.md)\n```\n[a](data.md)"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    """Links as a reader of the repository follows them; the strict build checks the site's."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s#]+)", text) + re.findall(r"(?:src|href)=\"([^\"#]+)", text)
    dead = [
        link
        for link in links
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]
    assert dead == []


@pytest.mark.parametrize("page", OPENS, ids=lambda page: page.name)
def test_a_page_opens_with_what_the_reader_can_do_and_then_a_command(page: Path) -> None:
    title, sentence, *rest = page.read_text().split("\n\n")
    assert title.startswith("# ")
    assert sentence.startswith("Here you "), sentence
    assert any(part.startswith("```") for part in rest[:3]), "no command near the top"


def test_files_that_the_guide_names_exist() -> None:
    """Paths in CONTRIBUTING.md and in the tables of docs/design.md; capitals stand for a name to
    choose."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {
        path
        for path in re.findall(r"`((?:scaling|conf|docs|tests|tools)/[\w./-]*)`", text)
        if not re.search(r"[A-Z]{3}", path)
    }
    assert len(named) > 10
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    design = (ROOT / "docs" / "design.md").read_text()
    tables = "\n".join(line for line in design.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", tables))
    assert len(named) > 30
    absent = [path for path in named if not any((ROOT / "scaling").rglob(path.strip("/")))]
    assert [path for path in sorted(absent) if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_site_is_built_without_a_dead_link_and_one_is_found(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    for name in ("docs", "tools", "cluster", "scaling"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    build.build(load_config(str(tmp_path / "mkdocs.yml"), strict=True))
    assert (tmp_path / "build" / "site" / "clusters.html").is_file()
    with (tmp_path / "docs" / "data.md").open("a") as page:
        page.write("\n[dead](nowhere.md)\n")
    with pytest.raises(Abort):
        build.build(load_config(str(tmp_path / "mkdocs.yml"), strict=True))
