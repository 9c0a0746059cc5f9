"""The page in a real Chromium, over a real API and a real engine, with packets going through."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import packets
from daemon.rig import controller, listening
from daemon.test_api import send
from kuproxy.daemon.api.auth import Access
from kuproxy.daemon.api.server import bind_tcp
from kuproxy.daemon.control import Controller

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no program `chromium`: the page is not tested", allow_module_level=True)
playwright_api = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not tested")
Page = playwright_api.Page
expect = playwright_api.expect

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps",
]  # fmt: skip
WEB = "90.0.0.1/32 protocol tcp port 80"
SCRIPT = f"""\
ku conf buckets 4096
ku vip {WEB}
ku pod 90.0.0.1/32 10.0.0.1 10.0.0.2 10.0.0.3
ku vip 91.0.0.1/32 protocol udp port 53
ku pod 91.0.0.1/32 10.0.1.1
ku vip 92.0.0.1/32
"""
VIEWS = {"services": "Services", "ring": "Ring", "path": "Packet path", "flows": "Flows"}


@contextmanager
def serving(made: Controller, access: Access | None = None) -> Iterator[str]:
    """The page of a controller: its address."""
    opened = bind_tcp("127.0.0.1", 0, "web")
    with listening(made, opened, access, web=access is None):
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"


@contextmanager
def flowing(made: Controller) -> Iterator[None]:
    """Packets for both services, and some without a pod, until the block ends."""
    stop = threading.Event()

    def run() -> None:
        turn = 0
        while not stop.wait(0.1):
            turn += 1
            frames = [
                packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1000 + (turn * 7 + number) % 300, 80))
                for number in range(20)
            ]
            frames += [
                packets.frame(packets.udp("40.0.0.2", "91.0.0.1", 2000 + number, 53)) for number in range(3)
            ]
            frames += [packets.frame(packets.udp("40.0.0.3", "92.0.0.1", 7, 7))] * 2
            send(made, *frames)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def made() -> Controller:
    made = controller()
    made.run(SCRIPT)
    return made


class Visit:
    """Pages, and everything that they complain about."""

    def __init__(self, browser: object) -> None:
        self._browser = browser
        self.problems: list[str] = []
        self.asked: set[str] = set()
        self._contexts: list[object] = []

    def open(self, url: str, *, width: int = 1280, scheme: str = "light") -> Page:  # type: ignore[valid-type]
        context = self._browser.new_context(  # type: ignore[attr-defined]
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.asked.add(re.sub(r"(?<=\d)/.*", "/", request.url)))
        page.goto(url)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()  # type: ignore[attr-defined]


@pytest.fixture
def visit(browser: object) -> Iterator[Visit]:
    visit = Visit(browser)
    yield visit
    visit.close()


def row(page: Page, table: str, words: str) -> object:  # type: ignore[valid-type]
    return page.get_by_role("table", name=table, exact=True).locator("tbody > tr.row").filter(has_text=words)


def number(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([kM]?)", text)
    assert found is not None, text
    return float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}[found[2]]


def eventually(page: Page, holds: Callable[[], bool], what: str) -> None:  # type: ignore[valid-type]
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(what)


def test_services_and_pods_have_live_rates_by_keyboard_alone(visit: Visit, made: Controller) -> None:
    with serving(made) as url, flowing(made):
        page = visit.open(url)
        web = row(page, "Services", WEB)
        expect(web).to_be_visible()
        cell = web.locator("td").nth(1)
        eventually(page, lambda: re.match(r"\d", cell.inner_text()) is not None, "a rate")
        eventually(page, lambda: 60 < number(cell.inner_text()) < 400, "about 200 a second were sent")
        cards = page.locator(".card dd")
        eventually(page, lambda: number(cards.nth(2).inner_text()) > 5, "drops")
        expect(row(page, "Services", "92.0.0.1")).to_contain_text("no pods")
        expect(row(page, "Workers", "4.1k").or_(row(page, "Workers", "16.4k"))).to_be_visible()
        # Its pods, and back.
        toggle = web.get_by_role("button")
        toggle.focus()
        page.keyboard.press("Enter")
        for address in ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"):
            expect(row(page, f"Pods of {WEB}", address)).to_be_visible()
        page.wait_for_timeout(1500)
        assert page.evaluate("document.activeElement.textContent") == WEB, "an update took the focus away"
        page.keyboard.press("Enter")
        expect(page.get_by_role("table", name=f"Pods of {WEB}")).to_have_count(0)
        # Sorted by name.
        page.get_by_role("button", name="Service", exact=True).focus()
        page.keyboard.press("Enter")
        first = page.locator("#vip-table tbody tr").first
        expect(first).to_contain_text("90.0.0.1")
        assert "by=name" in page.url
        # From anywhere, the first key leads past the header.
        page.reload()
        expect(first).to_contain_text("90.0.0.1")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
    assert visit.problems == []
    assert visit.asked == {url}, "nothing from elsewhere"


def test_a_service_is_found_among_a_thousand(visit: Visit) -> None:
    made = controller()
    made.run(
        "\n".join(
            f"ku vip 10.96.{n // 250}.{n % 250}/32 protocol tcp port 80 new_len 16" for n in range(1000)
        )
    )
    with serving(made) as url:
        page = visit.open(url)
        expect(page.locator(".pager")).to_contain_text("1 to 50 of 1000")
        page.get_by_role("button", name="Next").click()
        expect(page.locator(".pager")).to_contain_text("51 to 100 of 1000")
        assert page.locator("#vip-table tbody tr").count() == 50
        page.get_by_label("Find").fill("10.96.3.249")
        expect(page.locator("#vip-table tbody tr")).to_have_count(1)
        page.get_by_label("Find").fill("nothing like it")
        expect(page.get_by_text("No service or VIP contains")).to_be_visible()
    assert visit.problems == []


def cells(page: Page, kind: str) -> int:  # type: ignore[valid-type]
    """Cells that the paths of a class draw in the ring's picture."""
    drawn: list[str] = page.locator(f"#ring-picture path.{kind}").evaluate_all(
        "(paths) => paths.map((path) => path.getAttribute('d'))"
    )
    return sum(each.count("M") for each in drawn)


def test_the_ring_shows_what_the_last_change_moved(visit: Visit, made: Controller) -> None:
    with serving(made) as url:
        page = visit.open(f"{url}#ring")
        picture = page.locator("#ring-picture svg")
        expect(picture).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_have_text(f"Ring of {WEB}")
        expect(page.get_by_text("has not changed since")).to_be_visible()
        made.run("ku pod 90.0.0.1/32 10.0.0.2 del")
        expect(page.get_by_text(re.compile(r"The last change moved 3\d\d of 1024 slots"))).to_be_visible()
        expect(row(page, "Shares of the ring", "10.0.0.2:80 (gone)")).to_contain_text("−341")
        assert cells(page, "pod") == 1024
        said = re.search(r"moved (\d+)", page.locator("main").inner_text())
        assert said is not None and cells(page, "before") == int(said[1])
        # A pod is pointed out by keyboard.
        button = row(page, "Shares of the ring", "10.0.0.3:80").get_by_role("button")
        button.focus()
        assert page.locator("#ring-picture.picking path.picked").count() > 0
        colours = page.evaluate(
            "[...document.querySelectorAll('#ring-picture path.picked')].map((p) => p.getAttribute('stroke'))"
        )
        assert set(colours) == {button.locator("rect").get_attribute("fill")}
        page.get_by_role("link", name="91.0.0.1/32 protocol udp port 53").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Ring of 91.0.0.1/32 protocol udp port 53")
        made.run("ku vip 93.0.0.1/32 new_len 65536\nku pod 93.0.0.1/32 10.0.0.1 10.0.0.2")
        page.get_by_label("Find a VIP").fill("93.0")
        page.get_by_role("link", name="93.0.0.1/32").click()
        expect(page.locator("#ring-caption")).to_have_text("Of 65536 slots, one in 4 is drawn.")
        page.goto(f"{url}#ring?prefix=91.0.0.1/32&protocol=udp&port=53")
        # It goes away while somebody looks.
        made.run("ku vip 91.0.0.1/32 del")
        expect(page.get_by_text("no VIP 91.0.0.1/32")).to_be_visible()
    assert [each for each in visit.problems if "422" not in each] == []


def test_the_path_has_counters_that_move(visit: Visit, made: Controller) -> None:
    with serving(made) as url, flowing(made):
        page = visit.open(f"{url}#path")
        node = page.locator("#graph-picture g.node").filter(has=page.locator("title", has_text="kp-balance:"))
        expect(node).to_contain_text("/s ·")
        expect(node).to_contain_text("✕")
        before = node.text_content()
        eventually(page, lambda: node.text_content() != before, "moving counters")
        edge = page.locator("#graph-picture path.edge title").filter(has_text="kp-balance to kp4-nat4: ")
        found = re.search(r"(\d+) packets", edge.text_content() or "")
        assert found is not None and int(found[1]) > 0
        expect(row(page, "Drops by reason", "kp-balance")).to_contain_text("no server configured")
        eventually(
            page,
            lambda: number(row(page, "Outcomes", "transmit").locator("td").nth(1).inner_text()) > 50,
            "rates",
        )
    assert visit.problems == []


def test_flows_are_found(visit: Visit, made: Controller) -> None:
    for first in (1000, 1115):  # a vector takes 192 packets
        web = [packets.tcp("40.0.0.1", "90.0.0.1", first + number, 80) for number in range(115)]
        send(made, *map(packets.frame, web))
    dns = [packets.udp("40.0.0.2", "91.0.0.1", 2000 + number, 53) for number in range(3)]
    send(made, *map(packets.frame, dns))
    with serving(made) as url:
        page = visit.open(url)
        page.get_by_role("link", name="Flows").click()
        lines = page.locator("#flow-table tbody tr")
        expect(lines).to_have_count(100)
        page.get_by_role("button", name="More").click()
        expect(lines).to_have_count(200)
        page.get_by_role("button", name="More").click()
        expect(lines).to_have_count(233)
        expect(page.get_by_role("button", name="More")).to_be_hidden()
        page.get_by_label("Client").fill("40.0.0.2")
        page.get_by_label("State").select_option("udp")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(lines).to_have_count(3)
        expect(lines.first).to_contain_text("10.0.1.1:53")
        page.reload()
        expect(lines).to_have_count(3)
        page.get_by_label("Client").fill("<img src=x onerror=alert(1)>")
        page.get_by_label("Client").press("Enter")
        expect(page.locator("p.bad")).to_contain_text("'<img src=x onerror=alert(1)>' is not an IP address")
        assert page.locator("main img").count() == 0
    assert [each for each in visit.problems if "422" not in each] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_is_legible(
    visit: Visit, made: Controller, scheme: str, width: int, tmp_path: Path
) -> None:
    made.run("ku pod 90.0.0.1/32 10.0.0.2 del")
    with serving(made) as url, flowing(made):
        for name, title in VIEWS.items():
            page = visit.open(f"{url}#{name}", width=width, scheme=scheme)
            expect(page.locator("nav a[aria-current]")).to_have_text(title)
            expect(page.locator("#status")).to_contain_text("3 VIPs")
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (
                f"{name} is wider than the screen"
            )
            for selector in ("body", "#status", "h1", "nav a", "th"):
                if page.locator(selector).count():
                    assert contrast(page, selector) >= 4.5, f"{name}: {selector}"  # WCAG 2.1, 1.4.3
            page.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png")
    assert visit.problems == []


def contrast(page: Page, selector: str) -> float:  # type: ignore[valid-type]
    """Of an element's text to what it stands on, as WCAG 2.1 defines it."""
    text, ground = page.locator(selector).first.evaluate(
        """(element) => {
            const text = getComputedStyle(element).color;
            let ground = element;
            const colour = (each) => getComputedStyle(each).backgroundColor;
            while (ground && /rgba\\(.*, 0\\)/.test(colour(ground))) ground = ground.parentElement;
            return [text, colour(ground ?? document.body)];
        }"""
    )
    first, second = sorted(map(_luminance, (text, ground)))
    return (second + 0.05) / (first + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_an_empty_daemon_says_what_to_do(visit: Visit) -> None:
    with serving(controller()) as url:
        page = visit.open(url)
        expect(page.get_by_text("There are no services yet")).to_be_visible()
        expect(page.locator(".pager")).to_be_hidden()
        for name, said in (
            ("ring", "There are no VIPs yet"),
            ("path", "Nothing was dropped"),
            ("flows", "No flow fits"),
        ):
            page.goto(f"{url}#{name}")
            expect(page.get_by_text(said)).to_be_visible()
    assert visit.problems == []


def test_where_a_token_is_needed_it_is_asked_for_once(visit: Visit, made: Controller) -> None:
    with serving(made, Access(tokens=frozenset({b"0123456789abcdef"}))) as url:
        page = visit.open(url)
        expect(page.get_by_role("heading", name="Token")).to_be_visible()
        page.get_by_label("Token").fill("0123456789abcdef")
        page.keyboard.press("Enter")
        expect(row(page, "Services", WEB)).to_be_visible()
        page.get_by_role("link", name="Flows").click()
        expect(page.get_by_text("No flow fits")).to_be_visible()
    assert [each for each in visit.problems if "401" not in each] == []


def test_a_daemon_that_goes_away_is_told(visit: Visit, made: Controller) -> None:
    with serving(made) as url:
        page = visit.open(url)
        expect(row(page, "Services", WEB)).to_be_visible()
    expect(page.locator("#status.bad")).to_have_text("the daemon does not answer")
    expect(row(page, "Services", WEB)).to_be_visible()
