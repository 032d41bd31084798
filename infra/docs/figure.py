"""Take the README's picture of the report page: its upper part, in Chromium, light theme.

qwq-batch report out/demo
python -m infra.docs.figure report.html
"""

import sys
from pathlib import Path

PICTURE = Path(__file__).with_name("report.png")
WIDTH, SECTIONS = 900, 2


def take(page_file: Path, picture: Path = PICTURE) -> None:
    """Save the first sections of the report ``page_file`` as a PNG file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": WIDTH}, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        box = page.locator("section").nth(SECTIONS - 1).bounding_box()
        assert box is not None, "the page has fewer sections"
        height = box["y"] + box["height"] + 16
        page.screenshot(
            path=picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": height}, full_page=True
        )
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]))
    print(f"wrote {PICTURE}")
