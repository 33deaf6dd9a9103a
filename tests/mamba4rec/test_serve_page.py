"""The demo page in a real headless browser: a click changes the list."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from browser import CHROMIUM, Browser
from service import Client, make_model, serving

from seqgraph_mamba4rec.serve.app import Limits, make_app
from seqgraph_mamba4rec.serve.engine import Engine
from seqgraph_mamba4rec.serve.store import UserStore

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
TOKEN = "0123456789abcdef"
LIST = "[...document.querySelectorAll('#list .title')].map(e => e.textContent)"
SHOWN = "document.querySelector('%s').checkVisibility()"
DONE = "document.querySelector('#list').dataset.events == "


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def service(folder, token=None):
    return serving(make_app(Engine(UserStore(folder, make_model(), capacity=20)), limits=Limits(), token=token))


def expected(history):
    (row,) = make_model().recommend([history], k=12)
    return [r.title for r in row]


def test_each_click_changes_the_list(browser, tmp_path):
    with service(tmp_path) as url:
        browser.problems.clear()
        browser.open(url)
        browser.until("document.querySelectorAll('#items button').length == 30")
        assert browser.value(LIST) == [] and browser.value(SHOWN % "#first") and not browser.value(SHOWN % "#asked")
        browser.type("#user", "visitor <i>")
        browser.click("#items button[data-item='7']")
        browser.until(DONE + "1")
        assert browser.value(LIST) == expected(["7"])
        browser.type("#search", "film 41")
        browser.until("document.querySelectorAll('#items button').length == 1")
        browser.click("#items button[data-item='41']")
        browser.until(DONE + "2")
        assert browser.value(LIST) == expected(["7", "41"]) != expected(["7"])
        # What is recommended can be clicked too; names are text, whatever they hold.
        third = browser.value("document.querySelector('#list button').dataset.item")
        browser.click("#list button")
        browser.until(DONE + "3")
        assert browser.value(LIST) == expected(["7", "41", third])
        assert (
            browser.value("document.querySelector('#watched li:last-child').textContent")
            == make_model().assets["titles"]["7"]
        )
        assert browser.value("document.querySelectorAll('main b').length") == 0
        assert "ms after your click" in browser.value("document.querySelector('#took').textContent")
        if "SEQGRAPH_SCREENSHOT" in os.environ:
            browser.picture(Path(os.environ["SEQGRAPH_SCREENSHOT"]))
        assert Client(url)("/history?user=visitor%20%3Ci%3E")[1]["events"] == 3
        # After a reload the page knows who one is, and the list is there.
        browser.open(url)
        browser.until(DONE + "3")
        assert browser.value(LIST) == expected(["7", "41", third])
        # Nothing failed but the two questions for a user who was not known yet.
        assert all("/history?user=" in problem and "404" in problem for problem in browser.problems), browser.problems


def test_the_page_asks_for_a_token(browser, tmp_path):
    with service(tmp_path, TOKEN) as url:
        browser.open(url)
        browser.until(SHOWN % "#asked")
        assert "token is missing" in browser.value("document.querySelector('#said').textContent")
        browser.type("#token", TOKEN)
        browser.until("document.querySelectorAll('#items button').length == 30")
        browser.click("#items button[data-item='3']")
        browser.until(DONE + "1")
        assert browser.value(LIST) == expected(["3"])


def test_the_page_says_when_the_service_is_gone(browser, tmp_path):
    with service(tmp_path) as url:
        browser.open(url)
        browser.until("document.querySelectorAll('#items button').length == 30")
    browser.click("#items button[data-item='3']")
    browser.until("document.querySelector('#said').textContent == 'The service does not answer.'")
