"""The page in a browser: typed, dropped, seen."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.index_files import TEXTS
from twn_lightning.index.searcher import Searcher

pytest.importorskip("fastapi")
pytest.importorskip("playwright.sync_api")

import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from twn_lightning.web.server import PageOptions, create_app

pytestmark = pytest.mark.ecosystem

DROP = """([name, type, content]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type }));
    for (const kind of ["dragenter", "dragover", "drop"]) {
        document.getElementById("drop").dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
    }
}"""


@pytest.fixture(scope="module")
def address(searcher: Searcher) -> Iterator[str]:
    """Of the page, served by a thread."""
    options = PageOptions(instructions=("Find the flag.", "Find it."), max_upload_bytes=20_000)
    server = uvicorn.Server(uvicorn.Config(create_app(searcher, options), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(address)
        yield opened
        browser.close()
    assert not problems


def test_words_are_typed_and_both_columns_seen(page: Page) -> None:
    expect(page.get_by_text("7 documents")).to_be_visible()
    page.get_by_label("What are you looking for?").fill(TEXTS["tokyo"])
    page.get_by_label("Results").fill("4")
    page.keyboard.press("Enter")
    without, with_thought = (page.get_by_role("region", name=name) for name in ("Without thinking", "With thinking"))
    expect(without.get_by_role("listitem")).to_have_count(4)
    expect(with_thought.get_by_role("listitem")).to_have_count(4)
    first = without.get_by_role("listitem").first
    expect(first).to_contain_text(TEXTS["tokyo"])
    expect(first).to_contain_text("texts/tokyo.txt")
    expect(first).to_contain_text("1.000")
    expect(page.get_by_text("Probability that thinking helps")).to_contain_text("threshold 0.5000")
    expect(page.get_by_text("(5 tokens)")).to_be_visible()
    expect(page.get_by_text("the gate’s choice").locator("visible=true")).to_have_count(1)
    expect(page.get_by_role("status")).to_contain_text("4 results")
    assert "text=the+capital" in page.url  # which can be kept


def test_a_dropped_picture_is_searched_with_and_results_show_theirs(page: Page, searched_index: Path) -> None:
    content = base64.b64encode((searched_index.parent / "corpus" / "pictures" / "red.png").read_bytes()).decode()
    page.evaluate(DROP, ["red.png", "image/png", content])
    expect(page.locator("#preview")).to_be_visible()
    expect(page.get_by_label("red.png")).to_be_attached()  # the name of the field that chooses a file
    page.get_by_role("button", name="Search").click()
    first = page.get_by_role("region", name="Without thinking").get_by_role("listitem").first
    expect(first).to_contain_text("pictures/red.png")
    image = first.locator("img")
    expect(image).to_be_visible()
    expect(image).to_have_js_property("naturalWidth", 48)
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#preview")).to_be_hidden()
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("There is nothing to search with")


def test_faults_are_said_in_words_and_do_not_stay(page: Page) -> None:
    page.get_by_role("button", name="Search").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("There is nothing to search with: type some words, or add a picture.")
    expect(page.get_by_label("What are you looking for?")).to_be_focused()
    page.evaluate(DROP, ["big.png", "image/png", base64.b64encode(b"\0" * 30_000).decode()])
    expect(alert).to_contain_text("at most 0.0 MB can be sent")
    page.evaluate(DROP, ["notes.txt", "text/plain", "eA=="])
    expect(alert).to_contain_text("notes.txt is no picture.")
    page.evaluate(DROP, ["broken.png", "image/png", "eA=="])
    page.get_by_role("button", name="Search").click()
    expect(alert).to_contain_text("The picture cannot be read")
    page.get_by_role("button", name="Remove the picture").click()
    page.get_by_label("What are you looking for?").fill("seven")
    page.get_by_label("Results").fill("1000")
    page.get_by_role("button", name="Search").click()
    expect(alert).to_contain_text("top_k is '1000'")
    page.get_by_label("Results").fill("2")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("listitem")).to_have_count(4)
    expect(alert).to_be_hidden()


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    names = []
    for _ in range(6):
        names.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert names[:5] == ["text", "go", "image", "instruction", "top_k"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(page: Page, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    page.emulate_media(color_scheme=scheme)
    page.get_by_label("What are you looking for?").fill("seven")
    page.keyboard.press("Enter")
    expect(page.get_by_role("listitem").first).to_be_visible()
    on_card = [(ink, ground) for ink in ("ink", "soft") for ground in ("card", "paper", "accent-soft")]
    for foreground, background in [*on_card, ("accent", "accent-soft"), ("on-accent", "accent"), ("up", "up-soft"), ("down", "down-soft")]:
        light, dark = sorted((_luminance(page, foreground), _luminance(page, background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (foreground, background)


def _luminance(page: Page, name: str) -> float:
    colour = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    letters = colour[1:] if len(colour) == 7 else "".join(letter * 2 for letter in colour[1:])
    parts = (int(letters[at : at + 2], 16) / 255 for at in (0, 2, 4))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
