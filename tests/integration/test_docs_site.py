"""The site of docs/: it is built without a warning, needs no network, and each of its links leads somewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import exltune

ROOT = Path(__file__).resolve().parents[2]
_CODE = re.compile(r"^```[\s\S]*?^```$|^ {4}.*$|`[^`\n]*`", re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
#: Element -> the attribute by which a browser loads something for the page itself.
_LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src"}


class Page(HTMLParser):
    """A built page. ids: its anchors. links: targets of `a`. loads: everything that a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect one element's attributes."""
        given = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and (target := given.get("href")):
            self.links.add(target)
        if (
            tag in _LOADS
            and (target := given.get(_LOADS[tag]))
            and given.get("rel") not in ("canonical", "next", "prev")
        ):
            self.loads.add(target)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict` as `make docs` runs it."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=source, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    """Internal links without a file or without their anchor. The page for missing pages is served at any depth."""
    for path, page in pages.items():
        for link in sorted(page.links | page.loads) if path.name != "404.html" else ():
            target, fragment = urldefrag(link)
            if urlsplit(link).scheme:
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                yield f"{path.name}: {link}: no such file"
            elif fragment and file in pages and unquote(fragment) not in pages[file].ids | {"__top"}:
                yield f"{path.name}: {link}: no such anchor"


def test_every_page_is_built(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    assert not list(broken(pages))


def test_the_check_finds_broken_links(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text('<h1 id="here">x</h1><a href="#here">1</a><a href="#there">2</a><a href="gone.html">3</a>')
    assert list(broken({file: Page(file)})) == [
        "page.html: #there: no such anchor",
        "page.html: gone.html: no such file",
    ]


def test_every_public_name_is_described(pages: dict[Path, Page], site: Path) -> None:
    """The API's page has an anchor for each, which links from other places lead to."""
    described = pages[site / "api.html"].ids | pages[site / "api-errors.html"].ids
    assert {f"exltune.{name}" for name in exltune.__all__ if name != "errors"} <= described
    assert "exltune.errors.UsageError" in described


def test_nothing_is_loaded_from_the_network(pages: dict[Path, Page]) -> None:
    assert not {load for page in pages.values() for load in page.loads if urlsplit(load).netloc}


def test_a_warning_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    (tmp_path / "docs" / "index.md").write_text("[gone](gone.md)\n")
    assert build(tmp_path, tmp_path / "site").returncode != 0


def links_of(text: str) -> list[str]:
    """Targets of the links in Markdown, those in code left out."""
    return _LINK.findall(_CODE.sub("", text))


def test_links_in_code_are_none() -> None:
    text = "[a](a.md)\n\n    [b](b.md)\n\n```\n[c](c.md)\n```\n\n`[d](d.md)` ![e](e.png#f)\n"
    assert links_of(text) == ["a.md", "e.png#f"]


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_top_pages(page: Path, pages: dict[Path, Page], site: Path) -> None:
    """README.md and its kin: files that are there, and anchors that the built page has."""
    for link in links_of(page.read_text(encoding="utf-8")):
        target, fragment = urldefrag(link)
        if urlsplit(link).scheme:
            continue
        assert (ROOT / target).is_file(), f"{page.name}: {link}"
        if fragment:
            built = site / Path(target).relative_to("docs").with_suffix(".html")
            assert fragment in pages[built].ids, f"{page.name}: {link}"


_NAMED = re.compile(r"`(exltune/[\w/]+\.py): (\w+)`")


def defined(file: Path) -> set[str]:
    """Names at the top of a module: functions, classes and constants."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_modules_and_names_exist(page: Path) -> None:
    """`exltune/package/module.py: name` in a page is the name of something there."""
    for module, name in _NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / module).is_file(), module
        assert name in defined(ROOT / module), f"{module}: {name}"


def test_the_walks_name_modules() -> None:
    assert len(_NAMED.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))) > 30
