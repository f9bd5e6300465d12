"""The page: five parts over one model, one desk a browser tab; nothing on it comes from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from mega_pl.errors import MegaValueError
from mega_pl.functional.text import counted
from mega_pl.look.studio import Desk, Studio
from mega_pl.look.tabs.ask import ask_tab
from mega_pl.look.tabs.bank import bank_tab
from mega_pl.look.tabs.common import CSS, Missing, desk_of, refusals
from mega_pl.look.tabs.edit import edit_tab, form_of
from mega_pl.look.tabs.results import results_tab
from mega_pl.look.tabs.see import see_tab

KEY = """() => {
    let key = sessionStorage.getItem("mega_pl");
    if (!key) {
        key = Date.now().toString(36) + Math.random().toString(36).slice(2);
        sessionStorage.setItem("mega_pl", key);
    }
    return key;
}"""
"""What names a tab: kept by the browser for the tab alone, so that its edits are there again when it is read anew."""

FONTS, MONO = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "monospace")

EXAMPLES = ("The birthplace of Marie Curie is", "The capital of France is", "The spouse of Marie Curie is")
"""Questions to begin with where there are no edits yet."""


def make_page(studio: Studio, root: Path) -> gr.Blocks:
    """Lay the page out.

    Args:
        studio: The model and the desks.
        root: The folder whose runs are offered.
    """
    bank = studio.start.bank
    examples = [request.filled for request in bank.requests[:3]] if bank else EXAMPLES
    with gr.Blocks(title=f"mega_pl · {studio.backbone.name}", analytics_enabled=False, fill_width=True) as blocks:
        key = gr.Textbox(visible="hidden", elem_id="key", label="tab")
        headline = gr.Markdown(elem_id="headline")
        with gr.Tabs() as tabs:
            with gr.Tab("Ask", id="ask"):
                ask_part = ask_tab(studio, key, examples)
            with gr.Tab("Edit", id="edit"):
                edit_part, form = edit_tab(studio, key)
            with gr.Tab("Bank", id="bank") as bank_page:
                bank_part, change, choice = bank_tab(studio, key)
            with gr.Tab("See", id="see"):
                see_part = see_tab(studio, key)
            with gr.Tab("Results", id="results") as results_page:
                offered, offer = results_tab(root)
        parts = [ask_part, edit_part, bank_part, see_part]
        shown = [headline, *(component for part in parts for component in part.shown)]

        def refresh(key: str, request: gr.Request) -> list[Any]:
            desk = desk_of(studio, key, request)
            return [_headline(studio, desk), *(update for part in parts for update in part.refresh(desk))]

        def on_change(chosen: list[str] | None, key: str, request: gr.Request) -> list[Any]:
            bank = desk_of(studio, key, request).edits.bank
            with refusals():
                if bank is None or not chosen or chosen[0] not in bank.ids:
                    raise Missing("Choose an edit first: click on its row.")
                return [gr.update(selected="edit"), *form_of(bank[chosen[0]])]
            return [gr.skip()] * (len(form) + 1)

        change.click(on_change, [choice, key], [tabs, *form])
        blocks.load(None, None, key, js=KEY).then(refresh, key, shown, show_progress="hidden")
        results_page.select(offer, None, offered, show_progress="hidden")
        bank_page.select(refresh, key, shown, show_progress="hidden")  # how often edits fired has changed
        for event in (event for part in parts for event in part.changes):
            event.then(refresh, key, shown, show_progress="hidden")
    page: gr.Blocks = blocks
    return page


def _headline(studio: Studio, desk: Desk) -> str:
    """The model and its edits in a line."""
    bank, off = desk.edits.bank, len(desk.edits.off)
    edits = counted(len(bank), "edit") if bank else "no edits yet"
    return f"**{studio.backbone.name}** · {edits}{f', {off} switched off' if off else ''}"


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, *, browser: bool = False) -> str:
    """Serve the page in the background, until ``page.close()``.

    Args:
        page: What `make_page` gave.
        host: Address that is listened to.
        port: Port; None for the first one that is free from 7860 on.
        browser: Whether a browser is opened.

    Returns:
        The page's address.

    Raises:
        ValueError: If the port is taken, or the address is not this machine's.
    """
    if port is not None and not 0 < port < 65536:
        raise MegaValueError(f"`port` must lie in [1, 65535], but got {port}.")
    page.queue(default_concurrency_limit=None)
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True, quiet=True, share=False,
            footer_links=[], enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False, css=CSS,
            theme=_theme(),
        )  # fmt: skip
    except OSError as error:
        place = host if port is None else f"{host}:{port}"
        raise MegaValueError(
            f"`host` and `port` must be free to listen at, but {place} is not; take others."
        ) from error
    return str(address)


def _theme() -> gr.themes.Base:
    """Fonts of the reader's own machine, and colours that can be told apart in light and dark (WCAG 2, 4.5 to 1)."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO).set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        button_cancel_background_fill="#b91c1c", button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b", button_cancel_background_fill_hover_dark="#991b1b",
        button_cancel_text_color="white", button_cancel_text_color_dark="white",
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700", block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
    )  # fmt: skip
