"""Builds the documentation site: `python -m docs.site [TARGET]`, by default into build/site.

    build/pages/          what Sphinx reads, laid out like the repository so that links between pages hold
      index.md            docs/site/index.md
      docs/…              the pages as they are, reference/ made from the code, drawings/ by kuproxy.pictures
      bench/results/…, CHANGELOG.md, CONTRIBUTING.md, SECURITY.md
    build/site/           the site

Warnings are errors: a link to nowhere, a page in no table of contents, a heading that skips a level.  After that every
link and picture of the HTML is followed, also to its anchor.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def main(target: Path) -> int:
    """Returns the exit status."""
    pages = target.parent / f"{target.name}-pages"
    assemble(pages)
    status = render(pages, target)
    if status == 0:
        print(f"{len(list(target.rglob('*.html')))} pages in {target}")
    return status


def render(pages: Path, target: Path) -> int:
    """Pages to HTML; returns the exit status, and says what is wrong."""
    shutil.rmtree(target, ignore_errors=True)
    words = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-c", str(HERE), "-d", f"{pages}.trees"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words, str(pages), str(target)], check=False)
    broken = broken_links(target)
    for line in broken:
        print(line, file=sys.stderr)
    return done.returncode or (1 if broken else 0)


def assemble(pages: Path) -> None:
    """Lay out what Sphinx reads."""
    from docs.site.drawings import DRAWINGS
    from docs.site.reference import PAGES

    shutil.rmtree(pages, ignore_errors=True)
    for place in ("docs", "docs/adr", "docs/explanation"):
        (pages / place).mkdir(parents=True, exist_ok=True)
        for page in (ROOT / place).glob("*.md"):
            shutil.copy(page, pages / place)
    (pages / "bench/results").mkdir(parents=True)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bench/results/SUMMARY.md"):
        shutil.copy(ROOT / name, pages / name)
    for picture in (ROOT / "bench/results").glob("*.svg"):
        shutil.copy(picture, pages / "bench/results")
    shutil.copy(HERE / "index.md", pages)
    for folder in ("reference", "drawings"):
        (pages / "docs" / folder).mkdir()
    for name, page in PAGES.items():
        (pages / "docs/reference" / name).write_text(page())
    for name, draw in DRAWINGS.items():
        (pages / "docs/drawings" / f"{name}.svg").write_text(draw())


# ------------------------------------------------------------------------------------------------- links


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, _tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


def broken_links(site: Path) -> list[str]:
    """`page: link`, of all that lead to no file of the site or no anchor in it. Those to elsewhere are not followed."""
    read: dict[Path, _Links] = {}
    for page in site.rglob("*.html"):
        read[page.resolve()] = links = _Links()
        links.feed(page.read_text())
    broken = []
    for page, links in read.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = read[path].anchors if path in read else None
            lost = parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            if not path.is_file() or lost:
                broken.append(f"{page.relative_to(site.resolve())}: {target}")
    return broken


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the metrics are those of a daemon without a network
    sys.exit(main((Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/site").resolve()))
