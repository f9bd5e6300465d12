"""What attribution costs at the shape of gpt2-xl with random weights, as ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/attribution.py --output runs/attribution.md

Times are the processor's, which other programs change little. Scoring every neuron is timed on a few blocks and
extrapolated, unless --full.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from peak import peak, restart_peak
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from mega_pl import Backbone, load
from mega_pl.attribution import head_importance, neuron_importance, top_attention_neurons, top_neurons
from mega_pl.edits.storage import write_text

PROMPTS = ["The capital of France is the city of Paris and the capital"]
TARGETS = [100]
T = TypeVar("T")


def main(args: list[str] | None = None) -> None:
    """Measure and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--heads", type=int, default=25)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--count", type=int, default=100, help="length of the lists")
    parser.add_argument("--scored", type=int, default=2, help="blocks of which every neuron is scored")
    parser.add_argument("--full", action="store_true", help="score every neuron of all blocks")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(args)
    backbone = random_backbone(options.blocks, options.width, options.heads, options.vocab)
    before = restart_peak()
    rows = [
        *lists(backbone, options.count, options.blocks if options.full else options.scored),
        *layers_and_heads(backbone),
        ("peak memory beyond the model", f"{(peak() - before) / 2**30:.2f} GiB"),
    ]
    lines = [
        f"{options.blocks} blocks, width {options.width}, {options.heads} heads, vocabulary {options.vocab}, random "
        f"weights in float32, a prompt of {len(backbone.tokenizer(PROMPTS[0])['input_ids'])} tokens, one target, "
        f"{torch.get_num_threads()} thread(s).\n",
        "| what | value |",
        "| --- | ---: |",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    print("\n".join(lines))
    if options.output:
        write_text(options.output, "\n".join(lines) + "\n")


def random_backbone(blocks: int, width: int, heads: int, vocab: int) -> Backbone:
    """A GPT-2 with its usual random initialisation and the lab's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=blocks, n_embd=width, n_head=heads, vocab_size=vocab))
    return load(model.eval(), load("lab-gpt2").tokenizer)


def lists(backbone: Backbone, count: int, scored: int) -> list[tuple[str, str]]:
    """Certified lists of neurons against exact scores of all of them."""
    forward, _ = timed(lambda: backbone.last_logits(backbone.encode(PROMPTS)))
    exhaustive, _ = timed(lambda: neuron_importance(backbone, PROMPTS, TARGETS, range(scored)), warm=False)
    every = forward + (exhaustive - forward) * backbone.n_layers / scored
    how = "" if scored == backbone.n_layers else f", extrapolated from {scored} blocks"
    rows = [(f"exact scores of all MLP neurons{how}", f"{every:.1f} s")]
    for end in ("positive", "negative"):
        for name, find in (("MLP", top_neurons), ("attention", top_attention_neurons)):
            seconds, found = timed(lambda: find(backbone, PROMPTS, TARGETS, count, end=end))  # noqa: B023
            cost = f"{seconds:.2f} s, {int(found.evaluated)} of {int(found.candidates)} scored exactly"
            rows.append((f"certified list of {count} {name} neurons, {end}", cost))
            if name == "MLP":
                rows.append((f"all scores / that list ({end})", f"{every / seconds:.0f}"))
    return rows


def layers_and_heads(backbone: Backbone) -> list[tuple[str, str]]:
    """Importances of layers and heads against the products with the unembedding that they need."""
    unembedding: Tensor = backbone.model.get_output_embeddings().weight
    layers, heads = backbone.n_layers, int(backbone.config.num_attention_heads)
    vectors = torch.randn(layers * (2 + heads), backbone.width)

    def products() -> None:
        for rows in torch.split(unembedding, 4096):
            vectors @ rows.T

    forward, _ = timed(lambda: backbone.last_logits(backbone.encode(PROMPTS)))
    least, _ = timed(products)
    whole, _ = timed(lambda: head_importance(backbone, PROMPTS, TARGETS))
    return [
        ("forward pass", f"{forward:.2f} s"),
        (f"products of {len(vectors)} vectors with the unembedding", f"{least:.2f} s"),
        ("importances of layers and heads, with the forward pass", f"{whole:.2f} s"),
        ("the same / products", f"{whole / least:.2f}"),
        ("without the forward pass / products", f"{(whole - forward) / least:.2f}"),
    ]


def timed(function: Callable[[], T], *, warm: bool = True) -> tuple[float, T]:
    """Processor seconds of a call, and its result; another call before it warms up."""
    if warm:
        function()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
