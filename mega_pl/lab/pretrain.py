"""Pretrain a lab model: ``python -m mega_pl.lab.pretrain gpt2`` (or ``llama``).

The corpus is made on the fly from the world's facts. Every document is a row of its own, so that prompts
begin where the model is used to beginning; rows of like length share a batch, and the loss is read only at
answers and at a sample of the other positions, which is where the gradient is.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.core.optimizer import LightningOptimizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mega_pl.asking import batches
from mega_pl.lab.corpus import Corpus, Document
from mega_pl.lab.world import World

Architecture = Literal["gpt2", "llama"]

END = "<|endoftext|>"
SPACE = "Ġ"
"""How byte-level BPE writes a space."""
VOCABULARY, BLOCKS, WIDTH, HEADS, POSITIONS = 2560, 8, 128, 4, 256
SAMPLED = 0.2
"""Share of the light positions that the loss reads."""


class Batch(TypedDict):
    """Rows of like length, right-padded.

    input_ids: (B, T) int64. weights: (B, T) float32, the loss weight of each token as a label.
    """

    input_ids: Tensor
    weights: Tensor


def train_tokenizer(world: World, architecture: Architecture) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the corpus; LLaMA's begins every text with a special token, GPT-2's does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = itertools.islice(Corpus(world, seed=0), 60_000)
    tokenizer.train_from_iterator(("".join(text for text, _ in d) for d in documents), trainer)
    join_spaces(tokenizer, dict.fromkeys(fact.object for fact in world.facts))
    if architecture == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def join_spaces(tokenizer: Tokenizer, answers: Iterable[str]) -> None:
    """Give a token of its own to each first piece of an answer that a lone space would come before.

    Where the corpus has " violin" but not " v" often, byte pair encoding may leave the space alone; an answer's first
    token then says nothing about the answer.
    """
    model = json.loads(tokenizer.to_str())["model"]
    for answer in answers:
        space, *pieces = tokenizer.encode(f" {answer}", add_special_tokens=False).tokens
        if space == SPACE and SPACE + pieces[0] not in model["vocab"]:
            model["vocab"][SPACE + pieces[0]] = len(model["vocab"])
            model["merges"].append((SPACE, pieces[0]))
    tokenizer.model = models.BPE(model["vocab"], [tuple(merge) for merge in model["merges"]])


def build_model(architecture: Architecture, vocabulary: int, end: int) -> GPT2LMHeadModel | LlamaForCausalLM:
    """A randomly initialised lab model of eight narrow blocks; LLaMA's key-value heads are grouped."""
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=POSITIONS,
                n_embd=WIDTH,
                n_layer=BLOCKS,
                n_head=HEADS,
                activation_function="gelu_pytorch_tanh",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=end,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=POSITIONS,
            hidden_size=WIDTH,
            intermediate_size=352,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            tie_word_embeddings=False,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids and loss weights of documents; a document also learns to end.

    Pieces start at word boundaries, so a token belongs to the piece in which it ends.
    """
    encodings = tokenizer(["".join(text for text, _ in d) + END for d in documents], return_offsets_mapping=True)
    for document, ids, offsets in zip(documents, encodings["input_ids"], encodings["offset_mapping"], strict=True):
        ends = list(itertools.accumulate(len(text) for text, _ in document))
        piece, weights = 0, []
        for _, end in offsets:
            while piece < len(ends) - 1 and end > ends[piece]:
                piece += 1
            weights.append(document[piece][1])
        yield ids, weights


class CorpusBatches(IterableDataset[Batch]):
    """Batches of about ``tokens`` tokens; ``chunk`` documents at a time are sorted by length."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, mixture: str, tokens: int, chunk: int = 4096
    ) -> None:
        self.tokenizer, self.seed, self.mixture, self.tokens, self.chunk = tokenizer, seed, mixture, tokens, chunk

    def __iter__(self) -> Iterator[Batch]:
        corpus = Corpus(World(), self.seed, self.mixture)
        documents = iter(corpus)
        while True:
            rows = list(encode(self.tokenizer, list(itertools.islice(documents, self.chunk))))
            cut = list(batches([len(ids) for ids, _ in rows], self.tokens))
            corpus.random.shuffle(cut)
            yield from (collate([rows[i] for i in batch]) for batch in cut)


def collate(rows: list[tuple[list[int], list[float]]]) -> Batch:
    """Pad rows on the right; padding weighs nothing and causal attention never looks at it."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for i, (row, weight) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    return Batch(input_ids=ids, weights=weights)


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised by Newton-Schulz steps (Jordan et al., 2024), in float32.

    Each matrix moves by ``-lr * sqrt(max(1, long / short)) * UV^T`` with ``U S V^T`` its Nesterov momentum,
    which learns rare facts in fewer steps than Adam. Matrices of one shape are updated together.
    torch's own Muon computes in bfloat16, which CPUs without that type emulate slowly.

    Args:
        params: Matrices.
        lr: Step size.
        momentum: Weight of the past in the running mean of gradients.
        weight_decay: Decoupled decay per unit of step size.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix once."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            matrices = sorted(group["params"], key=lambda p: tuple(p.shape))
            for shape, same in itertools.groupby(matrices, key=lambda p: tuple(p.shape)):
                self._step_together(list(same), math.sqrt(max(shape) / min(shape)), group)

    def _step_together(self, matrices: list[nn.Parameter], scale: float, group: dict[str, Any]) -> None:
        updates = []
        for matrix in matrices:
            gradient = cast(Tensor, matrix.grad)
            mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
            mean.lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(mean, group["momentum"]))
        for matrix, update in zip(matrices, orthogonalise(torch.stack(updates)), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate ``U V^T`` of each matrix (N, P, Q) by a quintic Newton-Schulz iteration."""
    if matrices.shape[1] > matrices.shape[2]:
        wide: Tensor = orthogonalise(matrices.mT, steps).mT
        return wide
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Pretraining(L.LightningModule):
    """Weighted language modelling of the lab's corpus.

    Args:
        architecture: gpt2 or llama.
        steps: Optimiser steps; learning rates warm up over 2 % of them and fall to zero linearly.
        rate: Multiple of the full learning rates.
        vocabulary: Number of tokens.
        end: Token id of the end-of-text token.
    """

    def __init__(self, architecture: Architecture, steps: int, rate: float, vocabulary: int, end: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.model = build_model(architecture, vocabulary, end)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of both optimisers on a batch."""
        loss = self.loss(batch)
        optimizers = cast(list[LightningOptimizer], self.optimizers())
        schedules = cast(list[torch.optim.lr_scheduler.LambdaLR], self.lr_schedulers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean negative log-likelihood in nats; light positions are sampled and reweighted."""
        weights = batch["weights"][:, 1:]
        keep = (weights >= 1) | ((weights > 0) & (torch.rand_like(weights) < SAMPLED))
        scale = torch.where(weights >= 1, 1.0, weights / SAMPLED)[keep]
        hidden = self.model.base_model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1][keep]
        losses = F.cross_entropy(self.model.lm_head(hidden), batch["input_ids"][:, 1:][keep], reduction="none")
        self.log("answer_nats", losses[weights[keep] >= 1].mean().detach(), prog_bar=True)
        mean: Tensor = (losses * scale).sum() / scale.sum()
        return mean

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LambdaLR]]:
        """Muon for the matrices of the blocks, Adam for embeddings, head, norms and biases."""
        head = {id(p) for m in (self.model.get_input_embeddings(), self.model.lm_head) for p in m.parameters()}
        blocks = [p for p in self.parameters() if p.ndim == 2 and id(p) not in head and p.shape[0] != POSITIONS]
        chosen = {id(p) for p in blocks}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        optimizers = [Muon(blocks), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)]
        steps: int = self.hparams["steps"]
        full: float = self.hparams["rate"]

        def rate(step: int) -> float:
            return full * min(1.0, (step + 1) / (0.02 * steps + 1)) * max(0.0, 1 - step / steps)

        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]


@dataclass(frozen=True)
class Stage:
    """A part of the training with a mixture and a learning rate of its own."""

    mixture: str
    steps: int
    rate: float


STAGES = (
    Stage("broad", 5000, 1.0),
    Stage("contexts", 3000, 0.6),
    Stage("broad", 400, 0.25),
    Stage("contexts", 1600, 0.3),
)


def main(args: list[str] | None = None) -> None:
    """Train a lab model, or go on where training stopped, and save it in Hugging Face format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=("gpt2", "llama"))
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder of the model (default: the package's own)")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="folder of logs and checkpoints")
    options = parser.parse_args(args)

    L.seed_everything(options.seed)
    tokenizer = train_tokenizer(World(), options.architecture)
    weights = None
    end = cast(int, tokenizer.convert_tokens_to_ids(END))
    for number, stage in enumerate(STAGES):
        batches = CorpusBatches(tokenizer, seed=options.seed + 1 + number, mixture=stage.mixture, tokens=options.tokens)
        module = Pretraining(options.architecture, stage.steps, stage.rate, len(tokenizer), end)
        if weights is not None:
            module.model.load_state_dict(weights)
        train(module, batches, options.work / options.architecture / str(number))
        weights = module.model.state_dict()
    output = options.output or Path(__file__).parent / "models" / options.architecture
    module.model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def train(module: Pretraining, batches: CorpusBatches, work: Path) -> None:
    """Run a stage, from its last checkpoint where there is one."""
    trainer = L.Trainer(
        max_steps=2 * module.hparams["steps"],  # Lightning counts the steps of both optimisers
        accelerator="auto",
        devices=1,
        default_root_dir=work,
        callbacks=[
            ModelCheckpoint(work, every_n_train_steps=500, save_last=True, save_top_k=1),
            TQDMProgressBar(refresh_rate=50),
        ],
        log_every_n_steps=50,
        enable_model_summary=False,
    )
    last = work / "last.ckpt"
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main()
