"""The documentation site: builds without a warning, says what the code says, and looks right in a real Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuproxy.cli import SUBCOMMANDS
from kuproxy.codes import Node, Reason
from kuproxy.daemon.api.routes import ROUTES
from kuproxy.daemon.settings import DaemonSettings

pytest.importorskip("sphinx", reason="no sphinx: the documentation site is not built")
pytest.importorskip("myst_parser", reason="no myst-parser: the documentation site is not built")
pytest.importorskip("furo", reason="no furo: the documentation site is not built")

from docs.site.__main__ import broken_links, render

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "docs.site", str(target)]
    done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_in_the_site(site: Path) -> None:
    for folder in ("docs", "docs/adr", "docs/explanation"):
        for page in (ROOT / folder).glob("*.md"):
            built = site / folder / f"{page.stem}.html"
            assert built.is_file(), page
            index = (site / "index.html").read_text()
            assert f"{folder}/{page.stem}.html" in index, f"{page} is in no table of contents"


def test_the_reference_is_that_of_the_code(site: Path) -> None:
    def text(page: str) -> str:
        return (site / f"docs/{page}.html").read_text()

    for name in SUBCOMMANDS:
        assert f'id="ku-{name}"' in text("reference/commands")
    for name in ("run", "generate", "paper"):
        assert f'id="ku-simulate-{name}"' in text("reference/commands")
    for route in ROUTES:
        assert f"{route.method} {route.path}" in text("reference/api").replace("</span> <span class=\"pre\">", " ")
    for reason in Reason:
        assert not reason or reason.name in text("counters")
    for name in DaemonSettings.__struct_fields__:
        assert name in text("reference/settings")
    for metric in ("kuproxy_received_packets_total", "kuproxy_worker_polls", "kubeproxy_sync_proxy_rules_duration"):
        assert metric in text("reference/metrics"), metric
    assert "Node ports at 127.0.0.1" in text("reference/not-supported")
    assert "source_ranges" in text("reference/language")
    for node in Node:
        assert node.label in (site / "_images/graph.svg").read_text()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](other.md#no-such-part)", "no-such-part"),
        ("![picture](none.svg)", "none.svg"),
        ('<a href="lost.html">there</a>', "lost.html"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, capfd: pytest.CaptureFixture[str], page: str, said: str) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    toc = "\n\n```{toctree}\nother\n```\n"
    (pages / "other.md").write_text("# Other\n\n[back](index.md)\n")
    (pages / "index.md").write_text(f"# Begin\n\n[other](other.md#other)\n{toc}")
    assert render(pages, tmp_path / "site") == 0, capfd.readouterr().err
    (pages / "index.md").write_text(f"# Begin\n\n{page}\n{toc}")
    assert render(pages, tmp_path / "site") != 0
    assert said in capfd.readouterr().err


def test_links_are_followed_to_their_anchor(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a><a href="b.html#there">b</a><a href="https://x/">x</a>')
    (tmp_path / "b.html").write_text('<p id="here"><img src="c.svg">')
    assert sorted(broken_links(tmp_path)) == ["a.html: b.html#there", "b.html: c.svg"]


# ------------------------------------------------------------------------------------------------- looked at


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("no program `chromium`: the documentation is not looked at")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: the documentation is not looked at")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        pytest.param("dark", 1500, marks=pytest.mark.long),  # half a minute each
        pytest.param("light", 420, marks=pytest.mark.long),
    ],
)
def test_every_page_in_chromium(site: Path, browser: object, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(f"{request.url} failed"))
    page.on("request", lambda request: None if request.url.startswith("file:") else troubles.append(request.url))
    looked_at = 0
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        looked_at += 1
        if path.name == "genindex.html" or path.name == "search.html":
            continue
        assert page.locator("h1").first.is_visible(), path
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{path.name} is {wider} pixels wider than the window"
        images = "[...document.querySelectorAll('article img')]"
        assert page.evaluate(f"{images}.filter(i => !i.naturalWidth).map(i => i.src)") == [], path
    assert looked_at > 45
    assert troubles == []
    page.close()


def test_a_reader_finds_the_way(site: Path, browser: object) -> None:
    """From the first page by links, and to a command's option."""
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.get_by_role("link", name="Quick start").first.click()
    assert page.locator("h1").inner_text().startswith("Quick start")
    page.get_by_role("link", name="On bare metal", exact=True).click()
    assert "load balancer on bare metal" in page.locator("h1").inner_text()
    page.get_by_role("link", name="Commands", exact=True).first.click()
    page.locator("#ku-explain").scroll_into_view_if_needed()
    assert page.locator("#ku-explain").get_by_text("--without-pod").first.is_visible()
    page.close()
