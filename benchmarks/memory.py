"""Memory at the shapes of gpt2-xl and llama2-7b: what --dry-run tells, and what a forward pass really takes.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

The told figures are of whole models. The pass is run through the first blocks alone, with random weights: blocks follow
one another, so that their number changes the weights and not what the widest moment adds to them. bfloat16 takes what
float16 does, but a CPU's kernels keep copies of the weights besides.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from peak import peak, restart_peak
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from mega_pl import Backbone, load
from mega_pl.backbone.memory import forward_bytes, weight_bytes
from mega_pl.edits.storage import write_text

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257},
    "llama2-7b": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}
PROMPTS = {"gpt2-xl": 32, "llama2-7b": 16}
"""Prompts a forward pass, as in the configs."""

TOKENS = 96
GIB = 2**30


def main(args: list[str] | None = None) -> None:
    """Measure and print the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--blocks", type=int, default=2, help="blocks that the pass is run through")
    command.add_argument("--output", type=Path)
    options = command.parse_args(args)
    tokenizer = load("lab-gpt2").tokenizer
    lines = [
        f"GiB; a pass reads prompts of {TOKENS} tokens.\n",
        "| shape | dtype | weights | prompts | pass, told | pass, measured | measured / told |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for shape, sizes in SHAPES.items():
        prompts = PROMPTS[shape]
        for dtype in (torch.float32, torch.float16):
            with torch.device("meta"):
                weights = weight_bytes(built(sizes, tokenizer, dtype))
            estimate, measured = measure(built(sizes | fewer(sizes, options.blocks), tokenizer, dtype), prompts)
            shown = [f"{value / GIB:.2f}" for value in (weights, estimate, measured)]
            lines.append(
                f"| {shape} | {str(dtype).removeprefix('torch.')} | {shown[0]} | {prompts} | {shown[1]} | {shown[2]} | "
                f"{measured / estimate:.2f} |"
            )
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def built(sizes: dict[str, Any], tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Backbone:
    """A model of a shape with random weights."""
    config = AutoConfig.for_model(**sizes, bos_token_id=0, eos_token_id=0)
    return load(AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), tokenizer)


def fewer(sizes: dict[str, Any], blocks: int) -> dict[str, int]:
    """The shape's number of blocks, replaced."""
    return {name: blocks for name in ("n_layer", "num_hidden_layers") if name in sizes}


def measure(backbone: Backbone, prompts: int) -> tuple[int, int]:
    """What a forward pass should take, and what the process grew by in it, in bytes."""
    words = " ".join(["the"] * TOKENS)
    encoded = backbone.encode([words] * prompts)
    backbone.last_logits(backbone.encode(["the"]))  # what is made once
    before = restart_peak()
    backbone.last_logits(encoded)
    return forward_bytes(backbone, prompts, encoded.input_ids.shape[1]), peak() - before


if __name__ == "__main__":
    main()
