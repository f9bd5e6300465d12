"""How long the page lets one wait: until it is open, until an answer begins, for an edit, and with 20 tabs at once.

    python benchmarks/look.py runs/lab_gpt2/edits

Needs Gradio, Playwright and a Chromium; all in seconds. Imports are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from pathlib import Path

from playwright.async_api import Page, async_playwright

from mega_pl import EditBank, load
from mega_pl.look.page import make_page, serve
from mega_pl.look.studio import Studio

TABS = 20
READY = "() => document.querySelector('#headline')?.innerText.includes('edit')"
ANSWERED = "() => document.querySelector('#why').innerText.includes('answered')"
BEGUN = "() => document.querySelectorAll('#bare .message').length > 1"
IN_FORCE = "() => document.querySelector('#progress').innerText.includes('in force')"


async def until(tab: Page, condition: str) -> None:
    """Wait for a condition of the page, looking at every 20 ms."""
    await tab.wait_for_function(condition, polling=20, timeout=120_000)


async def timed(address: str, bank: EditBank) -> None:
    """Measure, and print a line each."""
    questions = [request.filled for request in bank.requests[:TABS]]
    async with async_playwright() as tools:
        browser = await tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tabs = [await (await browser.new_context()).new_page()]
        begin = time.perf_counter()
        await tabs[0].goto(address)
        await until(tabs[0], READY)
        print(f"page shown: {time.perf_counter() - begin:.2f}")

        async def ask(tab: Page, question: str, done: str) -> float:
            await tab.locator("#question textarea").fill(question)
            start = time.perf_counter()
            await tab.locator("#ask").click()
            await until(tab, done)
            return time.perf_counter() - start

        print(f"first token of an answer: {await ask(tabs[0], questions[0], BEGUN):.2f}")
        await until(tabs[0], ANSWERED)
        await tabs[0].get_by_role("tab", name="Edit", exact=True).click()
        for place, text in (("#subject", "Marie Curie"), ("#wording", "{} was born in"), ("#new", "Rome")):
            await tabs[0].locator(f"{place} :is(textarea, input)").first.fill(text)
        begin = time.perf_counter()
        await tabs[0].locator("#fit").click()
        await until(tabs[0], IN_FORCE)
        print(f"an edit fitted: {time.perf_counter() - begin:.2f}")
        while len(tabs) < TABS + 1:
            tabs.append(await tabs[0].context.new_page())
            await tabs[-1].goto(address)
            await until(tabs[-1], READY)
        took = await asyncio.gather(*(ask(t, q, ANSWERED) for t, q in zip(tabs[1:], questions, strict=True)))
        right = 0
        for tab, request in zip(tabs[1:], bank.requests[:TABS], strict=True):
            right += request.target_new in await tab.locator("#edited").inner_text()
        print(f"{TABS} tabs of one browser at once: {right} right, the last after {max(took):.2f}")
        await browser.close()


def main() -> None:
    """Measure the page with a bank of a lab model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bank", help="folder of a bank")
    options = parser.parse_args()
    begin = time.perf_counter()
    bank = EditBank.from_pretrained(options.bank)
    page = make_page(Studio(load(str(bank.backbone["name"])), bank), Path("runs"))
    address = serve(page)
    print(f"{len(bank)} edits served: {time.perf_counter() - begin:.2f}")
    asyncio.run(timed(address, bank))
    page.close(verbose=False)


if __name__ == "__main__":
    main()
