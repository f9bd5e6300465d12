"""The page in a real browser: asked, edited, mended, removed, read anew, in several tabs, and with nonsense."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mega_pl import EditBank
from mega_pl.backbone import Backbone
from mega_pl.look.studio import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
PATIENCE = 30_000
"""Milliseconds that the page may take."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a right and a wrong row."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"metrics": {"acc": {"value": 0.5, "bare": 0.0, "n": 2}}}), "utf-8")
    rows = [
        {
            "mode": "own",
            "test": {"edit_id": edit, "prompt": f"{edit} is"},
            "prediction": said,
            "outcomes": {"acc": worth},
        }
        for edit, said, worth in (("first", "right", 1.0), ("second", "wrong", 0.0))
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def address(lab: Backbone, bank: EditBank, run: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    from mega_pl.look.page import make_page, serve

    page = make_page(Studio(lab, bank), run.parent)
    yield serve(page)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with api.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def outside() -> list[str]:
    """What pages asked for elsewhere than on this machine."""
    return []


@pytest.fixture
def opened(browser: Browser, address: str, outside: list[str]) -> Iterator[Callable[[], Page]]:
    """Opens the page in a tab of its own."""
    contexts = []

    def one() -> Page:
        contexts.append(browser.new_context())
        tab = contexts[-1].new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
        tab.goto(address)
        shows(tab, "#headline", "lab-gpt2")
        return tab

    yield one
    for context in contexts:
        context.close()
    assert outside == []


def shows(tab: Page, place: str, text: str) -> None:
    """Wait until a place of the page holds a text."""
    api.expect(tab.locator(place)).to_contain_text(text, timeout=PATIENCE)


def write(tab: Page, place: str, text: str) -> None:
    tab.locator(f"{place} :is(textarea, input)").first.fill(text)


def choose(tab: Page, place: str, text: str) -> None:
    """Choose from a list by typing and clicking."""
    tab.locator(f"{place} input").click()
    write(tab, place, text)
    tab.get_by_role("option", name=text, exact=True).first.click()


def go(tab: Page, part: str) -> None:
    tab.get_by_role("tab", name=part, exact=True).click()


def ask(tab: Page, question: str, edited: str, why: str) -> None:
    go(tab, "Ask")
    tab.locator("#clear").click()
    api.expect(tab.locator("#why")).to_have_text("", timeout=PATIENCE)
    write(tab, "#question", question)
    tab.locator("#ask").click()
    shows(tab, "#why", why)
    shows(tab, "#edited", edited)


def refused(tab: Page, text: str) -> None:
    """Wait for a refusal, and take it away."""
    toast = tab.locator(".toast-body.warning").first
    api.expect(toast).to_contain_text(text, timeout=PATIENCE)
    toast.get_by_test_id("toast-close").click()
    api.expect(tab.locator(".toast-body.warning")).to_have_count(0, timeout=PATIENCE)


def test_asked_edited_mended_removed_and_read_anew(opened: Callable[[], Page], tmp_path: Path) -> None:
    tab = opened()
    ask(tab, "The capital of France is", "Berlin", "france answered")
    shows(tab, "#bare", "Paris")
    shows(tab, "#words mark", "France")

    go(tab, "Edit")
    write(tab, "#subject", "Marie Curie")
    choose(tab, "#relation", "place of birth")
    write(tab, "#new", "Rome")
    tab.locator("#suggest").click()
    api.expect(tab.locator("#true :is(textarea, input)").first).to_have_value("Warsaw", timeout=PATIENCE)
    write(tab, "#edit_id", "curie")
    write(tab, "#aliases", "")
    tab.locator("#fit").click()
    shows(tab, "#progress", "curie is in force")
    shows(tab, "#checks", "next to it")
    shows(tab, "#headline", "3 edits")

    ask(tab, "Madame Curie was born in", "", "names no subject")
    tab.get_by_role("button", name="An edit should have answered").click()
    choose(tab, "#mend_edit", "curie")
    write(tab, "#mend_alias", "Madame Curie")
    tab.locator("#mend").click()
    api.expect(tab.locator("#mend_alias :is(textarea, input)").first).to_have_value("", timeout=PATIENCE)
    shows(tab, "#why", "curie answered")  # it is asked again by itself
    shows(tab, "#edited", "Rome")

    tab.reload()
    shows(tab, "#headline", "3 edits")  # what the tab has is there again
    shows(tab, "#edited", "Rome")
    ask(tab, "Marie Curie was born in", "Rome", "curie answered")

    go(tab, "Bank")
    shows(tab, "#bank", "curie")
    write(tab, "#folder", str(tmp_path / "bank"))
    tab.locator("#save").click()
    shows(tab, "#bank_note", "EditBank.from_pretrained")
    assert EditBank.from_pretrained(tmp_path / "bank").ids == ("france", "norway", "curie")
    choose(tab, "#choice", "curie")
    tab.locator("#remove").click()
    shows(tab, "#headline", "2 edits")
    ask(tab, "Marie Curie was born in", "Warsaw", "names no subject")
    go(tab, "Bank")
    tab.locator("#undo").click()
    shows(tab, "#headline", "3 edits")


def test_tabs_have_edits_of_their_own(opened: Callable[[], Page]) -> None:
    one, other = opened(), opened()
    go(one, "Bank")
    choose(one, "#choice", "france")
    one.get_by_role("button", name="Switch off").click()
    shows(one, "#headline", "1 switched off")
    ask(one, "The capital of France is", "Paris", "switched off")
    ask(other, "The capital of France is", "Berlin", "france answered")
    go(one, "Bank")
    choose(one, "#choice", "france")
    one.get_by_role("button", name="Change …").click()
    api.expect(one.locator("#subject :is(textarea, input)").first).to_have_value("France", timeout=PATIENCE)


def test_an_edit_is_seen_into(opened: Callable[[], Page]) -> None:
    tab = opened()
    go(tab, "See")
    choose(tab, "#see_edit", "france")
    tab.locator("#look").click()
    shows(tab, "#see_note", "have no gate")
    assert tab.locator("#layers img").count() == 1


def test_a_run_is_opened_and_its_rows_are_filtered(opened: Callable[[], Page], run: Path) -> None:
    tab = opened()
    go(tab, "Results")
    choose(tab, "#run", str(run))
    tab.locator("#open").click()
    shows(tab, "#scores", "0.500")
    shows(tab, "#row_count", "2 of 2 rows")
    choose(tab, "#row_outcome", "wrong")
    shows(tab, "#row_count", "1 of 2 rows")
    shows(tab, "#rows", "second is")
    tab.locator("#rows [role=gridcell]:visible", has_text="second is").first.click()
    api.expect(tab.get_by_text('"prediction": "wrong"')).to_be_visible(timeout=PATIENCE)


def test_nonsense_is_one_line_and_the_page_goes_on(opened: Callable[[], Page], run: Path, tmp_path: Path) -> None:
    tab = opened()
    tab.locator("#ask").click()
    refused(tab, "must not be empty")
    write(tab, "#question", "word " * 400)
    tab.locator("#ask").click()
    refused(tab, "must have at most 256 tokens")
    go(tab, "Edit")
    tab.locator("#fit").click()
    refused(tab, "Name the subject")
    tab.locator("#suggest").click()
    refused(tab, "Name the subject")
    write(tab, "#subject", "<script>alert(1)</script>")
    tab.locator("#fit").click()
    refused(tab, "Choose a relation, or write a wording")
    write(tab, "#wording", "{} and {} is")
    tab.locator("#fit").click()
    refused(tab, "Say the new object")
    write(tab, "#new", "\u202e")
    tab.locator("#fit").click()
    refused(tab, "exactly one")
    write(tab, "#wording", "The capital of {} is")
    write(tab, "#edit_id", "france")
    tab.locator("#fit").click()
    refused(tab, "the name of an edit of France")
    write(tab, "#edit_id", "")
    write(tab, "#new", "word " * 300)
    tab.locator("#fit").click()
    refused(tab, "must have at most 256 tokens together")
    write(tab, "#new", "Rome")
    for place, text, reason in (
        ("#true", "Rome", "must differ from"),
        ("#aliases", "Norway", "must not be the subject of another edit"),
        ("#phrasings", "nothing of it", "exactly one"),
        ("#edit_id", "../../etc", "no way out of a folder"),
    ):
        write(tab, place, text)
        tab.locator("#fit").click()
        refused(tab, reason)
        write(tab, place, "")
    write(tab, "#subject", "![x](http://198.51.100.8/a.png) <img src=http://198.51.100.8/b.png>")
    write(tab, "#new", "Rome")
    tab.locator("#fit").click()
    shows(tab, "#progress", "![x](http://198.51.100.8/a.png)")  # and nobody asks that address: `outside`
    go(tab, "Bank")
    for button in ("Switch off", "Switch on", "Change …", "Remove"):
        tab.get_by_role("button", name=button, exact=True).click()
        refused(tab, "Choose an edit first")
    tab.locator("#load").click()
    refused(tab, "Name the folder")
    tab.locator("#save").click()
    refused(tab, "Name the folder")
    write(tab, "#folder", str(tmp_path / "nothing"))
    tab.locator("#load").click()
    refused(tab, "There is no folder")
    tab.locator("#undo").click()
    shows(tab, "#bank_note", "Undone: ")
    tab.locator("#undo").click()
    shows(tab, "#bank_note", "Nothing to undo")
    go(tab, "See")
    choose(tab, "#see_edit", "france")
    write(tab, "#see_prompt", "word " * 400)
    tab.locator("#look").click()
    refused(tab, "must")
    go(tab, "Results")
    tab.locator("#open").click()
    refused(tab, "must hold metrics.json")
    choose(tab, "#run", str(run))
    tab.locator("#open").click()
    shows(tab, "#row_count", "2 of 2 rows")
    write(tab, "#row_words", "((( \\")
    shows(tab, "#row_count", "0 of 2 rows")
    go(tab, "Ask")
    tab.locator("#tokens input[type=number]").fill("9999")
    ask(tab, "The capital of France is", "Berlin", "france answered")
