"""Whether edits hold while text is written: whole objects, the old object's return, and how natural the text stays.

    python benchmarks/holding.py lab-gpt2 --edits 200
    python benchmarks/holding.py FOLDER --counterfact FILE --edits 100 --least 2 --sites resid_mid.18 ...

All edits are in one bank and each is asked by its own prompt, greedily, an oracle routing. Perplexity is the bare
model's: of what the edited model writes behind the new object, and of what the bare model writes behind the prompt, and
behind the prompt and the new object. Where the guard has changed
a text, the router is asked whether the text asks the edit's question there; if not, the guard was not needed.
"""

import argparse
import math
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import torch

from mega_pl import Backbone, EditBank, EditRequest, load
from mega_pl.data import DataFile
from mega_pl.data.datamodule import EditDataModule
from mega_pl.edits import RouterConfig
from mega_pl.edits.storage import write_text
from mega_pl.fitting import FitConfig, PromptConfig, fit
from mega_pl.functional.text import find_name, joint, without_names
from mega_pl.lab.data import LabDataModule


def main(args: list[str] | None = None) -> None:
    """Fit, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="lab-gpt2, lab-llama, a folder or a name on the hub")
    parser.add_argument("--counterfact", type=Path, help="a file of CounterFact; the lab's test split without it")
    parser.add_argument("--start", type=int, default=0, help="records to skip")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--least", type=int, default=1, help="the fewest tokens of a new object")
    parser.add_argument("--sites", nargs="*", default=[])
    parser.add_argument("--prefixes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--bank", type=Path, help="where the bank is kept, or taken from if it is there")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(args)
    backbone = load(options.model)
    requests = _requests(backbone, options)
    router = RouterConfig(answer=False, noun_phrases=False, ask_aliases=False)  # an oracle routes the prompts
    start = time.perf_counter()
    if options.bank is not None and options.bank.exists():
        bank = EditBank.from_pretrained(options.bank)
    else:
        bank = fit(
            backbone,
            requests,
            FitConfig(sites=tuple(options.sites), prompts=PromptConfig(prefixes=options.prefixes), router=router),
        )
        if options.bank is not None:
            bank.save_pretrained(options.bank)
    seconds = (time.perf_counter() - start) / len(bank)
    lines = table(backbone, bank, requests, options.tokens, f"{Path(options.model).name}, {len(bank)} edits")
    missed = "; ".join(f"{edit_id}: {text!r}" for edit_id, text in bank.missed.items())
    lines += ["", f"{seconds:.1f} s an edit; not whole: {missed or 'none'}"]
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def table(backbone: Backbone, bank: EditBank, requests: list[EditRequest], tokens: int, name: str) -> list[str]:
    """A line without and one with the guard, and what it changes."""
    prompts = [request.filled for request in requests]
    objects = [f"{joint(request.filled)}{request.target_new}" for request in requests]
    bare = backbone.generate(prompts, max_new_tokens=tokens)
    behind = backbone.generate([p + o for p, o in zip(prompts, objects, strict=True)], max_new_tokens=tokens)
    own = _perplexity(backbone, prompts, bare)
    given = _perplexity(backbone, [p + o for p, o in zip(prompts, objects, strict=True)], behind)
    lines = [f"| {name} | whole object | old one comes back | perplexity | bare | bare, behind the new object |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    written: dict[bool, list[str]] = {}
    for label, guard in (("without guard", False), ("with guard", True)):
        with bank.apply(backbone, edits=bank.ids, guard=guard):
            written[guard] = backbone.generate(prompts, max_new_tokens=tokens)
        rows = list(zip(requests, prompts, objects, written[guard], strict=True))
        kept = [(r, p + o, text.removeprefix(o)) for r, p, o, text in rows if text.startswith(o)]
        back = [r.edit_id for r, _, rest in kept if _returns(rest, r)]
        perplexity = _perplexity(backbone, [start for _, start, _ in kept], [rest for *_, rest in kept])
        whole = f"{len(kept) / len(rows):.3f} | {len(back)}/{len(kept)}"
        lines.append(f"| {label} | {whole} | {perplexity:.2f} | {own:.2f} | {given:.2f} |")
    changed, needless = _needless(backbone, bank, prompts, written)
    return [*lines, "", f"{changed} texts are changed by the guard, {needless} of them where they ask something else."]


def _requests(backbone: Backbone, options: argparse.Namespace) -> list[EditRequest]:
    """The first requests whose new objects are long enough."""
    data: EditDataModule
    if options.counterfact is None:
        data = LabDataModule(split="test")
    else:
        data = EditDataModule(DataFile(options.counterfact, "counterfact"), on_bad="skip", relation_phrasings=True)
    data.setup("fit")
    requests = [case.request for case in data.cases[options.start :]]
    long = [r for r in requests if len(backbone.answer_ids(r.filled, r.target_new)) >= options.least]
    return long[: options.edits]


def _needless(
    backbone: Backbone, bank: EditBank, prompts: list[str], written: dict[bool, list[str]]
) -> tuple[int, int]:
    """How many texts the guard changes, and how many of them at a place that does not ask the edit's question."""
    pairs = zip(bank.ids, prompts, written[False], written[True], strict=True)
    places = [(name, prompt + _shared(a, b).rstrip()) for name, prompt, a, b in pairs if a != b]
    if not places:
        return 0, 0
    with bank.apply(backbone) as use:
        backbone.last_logits(backbone.encode([text for _, text in places]))
        fired = use.fired
    return len(places), sum(edit != name for (name, _), edit in zip(places, fired, strict=True))


def _shared(one: str, other: str) -> str:
    """What two texts begin with."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _returns(text: str, request: EditRequest) -> bool:
    """Whether a text names the old object, other than within the names of the new one and of the subject."""
    rest = without_names(text, (request.target_new, request.subject))
    return find_name(rest, (request.target_true,)) is not None


@torch.no_grad()
def _perplexity(backbone: Backbone, starts: Sequence[str], texts: Sequence[str]) -> float:
    """The bare model's perplexity of texts behind others."""
    losses: list[float] = []
    for start, text in zip(starts, texts, strict=True):
        before, whole = (backbone.tokenizer(t)["input_ids"] for t in (start, start + text))
        if len(whole) == len(before):
            continue  # the text ends with its beginning
        logits = backbone.model(torch.tensor([whole], device=backbone.device), use_cache=False).logits[0].float()
        chances = logits[len(before) - 1 : -1].log_softmax(-1)
        index = torch.tensor(whole[len(before) :], device=chances.device)
        losses += (-chances.gather(1, index[:, None])[:, 0]).tolist()
    return math.exp(sum(losses) / len(losses)) if losses else math.nan


if __name__ == "__main__":
    main()
