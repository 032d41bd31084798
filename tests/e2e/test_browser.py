"""The report in a real Chromium: nothing in a trace runs, nothing is fetched, it can be used."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from pipeline.insight.html_report import page as report
from pipeline.monitor.figures import EnginePool
from tests.conftest import needs_program
from tests.outputs import write_output, write_record
from tests.unit.insight.test_html_report import HOSTILE

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = needs_program("chromium", CHROMIUM is not None, "chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its own sandbox does not work for root, as which tests run in containers.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a hostile text in each of prompt, thinking, answer and error, and in all."""
    folder = tmp_path_factory.mktemp("report")
    traces = list[dict[str, object]]()
    traces += ({"prompt": text, "think": text, "answer": text} for text in HOSTILE)
    whole = "\n\n".join(HOSTILE)
    traces.append({"prompt": whole, "think": whole, "answer": whole})
    traces.append({"state": "failed", "error": whole, "prompt": "a needle"})
    traces.append({"state": "looped", "think": "x" * 3000, "answer": None})
    traces.append({"answer": "so \\( x^2 \\) is\n\n$$\\boxed{\\frac{1}{2}}$$", "prompt": "half"})
    url = write_output(folder, traces)
    write_record(url, EnginePool(4, 2, 32, 3.0))
    path = folder / "report.html"
    path.write_text(report(url))
    return path


class Watched:
    """A page, and what it should never do."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page, self.dialogs, self.requests = page, list[str](), list[str]()
        self.complaints = list[str]()
        page.on("dialog", self._refuse)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(file.as_uri())

    def _refuse(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@pytest.fixture
def watched(browser: Browser, file: Path) -> Iterator[Watched]:
    page = browser.new_page()
    yield Watched(page, file)
    page.close()


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true })")
    page.wait_for_timeout(200)


def test_nothing_in_a_trace_runs_and_nothing_is_fetched(watched: Watched, file: Path) -> None:
    open_all(watched.page)
    assert watched.dialogs == []
    assert watched.requests == [file.as_uri()]
    assert watched.complaints == []
    assert watched.page.locator("iframe, img, object, embed, a, base, form, link").count() == 0
    # The text is there, as text.
    assert watched.page.locator("pre", has_text="<script>alert(1)</script>").count() > 0


def test_page_would_not_run_what_got_into_it_all_the_same(watched: Watched) -> None:
    """The second line of defence: the page's own policy."""
    watched.page.evaluate(
        """() => {
            const box = document.createElement('div');
            box.innerHTML = '<img src="http://127.0.0.1:9/x" onerror="window.ran = true">';
            document.body.append(box);
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
        }"""
    )
    watched.page.wait_for_timeout(300)
    assert watched.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in watched.complaints)


def test_traces_are_filtered_and_searched(watched: Watched) -> None:
    page, shown = watched.page, watched.page.locator("details.trace:visible")
    whole = page.locator("details.trace").count()
    assert shown.count() == whole
    page.select_option("#state", "failed")
    assert shown.count() == 1
    assert page.locator("#shown").inner_text() == f"1 of {whole} traces"
    page.select_option("#state", "")
    page.fill("#search", "NEEDLE")
    expect(page.locator("#shown")).to_have_text(f"1 of {whole} traces")
    shown.locator("summary").first.click()
    assert shown.locator("pre", has_text="a needle").is_visible()


def test_formulas_are_drawn(watched: Watched) -> None:
    page = watched.page
    page.fill("#search", "half")
    trace = page.locator("details.trace", has_text="half").first
    trace.locator("summary").first.click()
    box = trace.locator("menclose").first.bounding_box()
    fraction = trace.locator("mfrac").first.bounding_box()
    assert box is not None
    assert fraction is not None
    # A fraction is drawn as one: higher than a line of text is, and inside its box.
    assert fraction["height"] > 20
    assert box["height"] > fraction["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_page_fits_the_screen_in_light_and_dark(
    browser: Browser, file: Path, scheme: str, width: int, tmp_path: Path
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(file.as_uri())
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / "page.png")
    ground, ink = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("backgroundColor", "color")
    )
    light = [sum(map(int, color[4:-1].split(", "))) for color in (ground, ink)]
    assert (light[0] > light[1]) == (scheme == "light")
    context.close()
