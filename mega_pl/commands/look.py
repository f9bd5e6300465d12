"""``train.py look``: a page in the browser on which edits are asked, made, understood and kept."""

import os
from importlib.util import find_spec
from pathlib import Path

from mega_pl.backbone import load
from mega_pl.backbone.backbone import Dtype
from mega_pl.commands.predict import backbone_of
from mega_pl.edits import EditBank
from mega_pl.errors import MegaValueError

LAB = "lab-gpt2"
"""The model that is looked at where none is named."""

DEMO = Path("runs/lab_gpt2/edits")
"""Where `make demo` leaves its bank, which goes with it."""


def look(
    model: str | None = None,
    bank: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = False,
    runs: str = "runs",
    revision: str | None = None,
    dtype: Dtype = "float32",
    device_map: str | None = None,
) -> None:
    """Open a page on this machine to ask, edit and look inside a model.

    Without options it is the lab's GPT-2, with the edits of `make demo` where they have been fitted. Whoever reaches
    the page may write banks wherever you may: leave ``host`` as it is unless you trust them.

    Args:
        model: What `load` loads; by default what the bank was fitted on.
        bank: Folder of a bank, or its repository on the hub; none to begin without edits.
        host: Address that is listened to; 0.0.0.0 for every machine that reaches this one.
        port: Port; by default the first one that is free from 7860 on.
        browser: Whether to open a browser; also ``--browser`` alone.
        runs: Folder whose runs are offered under Results.
        revision: Branch, tag or commit of the model on the hub; by default the bank's.
        dtype: Of the model's weights.
        device_map: Where Accelerate puts the weights.

    Raises:
        ValueError: If Gradio is not installed, nothing can be listened to there, or the bank belongs to another model.
    """
    if find_spec("gradio") is None:
        raise MegaValueError('the page must have Gradio, but it is not installed; run `pip install "mega-pl[look]"`.')
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from mega_pl.look.page import make_page, serve
    from mega_pl.look.studio import Studio

    if bank is None and model in (None, LAB) and DEMO.is_dir():
        bank = str(DEMO)
    edits = EditBank.from_pretrained(bank) if bank is not None else None
    if edits is not None:
        backbone = backbone_of(edits, model, revision, dtype, device_map)
    else:
        backbone = load(model or LAB, revision=revision, dtype=dtype, device_map=device_map)
    page = make_page(Studio(backbone, edits), Path(runs))
    address = serve(page, host, port, browser=browser)
    print(f"{backbone.name} with {len(edits) if edits else 'no'} edits: {address}   (Ctrl-C ends)", flush=True)
    page.block_thread()
