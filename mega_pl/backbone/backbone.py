"""A causal language model with its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mega_pl.backbone.layout import blocks, check_sites, layout_of, text_config
from mega_pl.backbone.reading import prompt_lengths
from mega_pl.backbone.sites import Site, SiteKind
from mega_pl.errors import MegaTypeError, MegaValueError
from mega_pl.functional.text import joint

Dtype = Literal["float32", "float16", "bfloat16", "auto"]
PaddingSide = Literal["left", "right"]

_PROBE = "The capital of France is Paris, and 2 + 2 = 4."
_DIGEST_ROWS = 64


@dataclass(frozen=True)
class Encoded:
    """A padded batch of prompts on the model's device.

    Args:
        input_ids: (B, T) long.
        attention_mask: (B, T) long, 1 at real tokens.
        position_ids: (B, T) long, counted from each row's first real token.
        last: (B,) long, the index of each row's last real token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    last: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a forward pass, by name."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


class Backbone:
    """A causal language model in evaluation mode, its tokenizer and its layout; `load` makes it.

    Model and tokenizer stay as they are: no weight is frozen, no gradient is left in one, and the tokenizer is copied.
    It is not an `nn.Module`, so that a module that holds it neither moves nor saves its weights.

    Args:
        model: a model of a known architecture, in evaluation mode; of one in PEFT's wrapper the model inside.
        tokenizer: its tokenizer; in the copy the end-of-sequence token pads where no pad token is set.
        name: what others know the model by.
        revision: the revision it was loaded at.

    Raises:
        ValueError: if the architecture is unknown, the model is in training mode, or the tokenizer cannot pad or does
            not give back what it encodes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        revision: str | None = None,
    ) -> None:
        model = _unwrapped(model)
        self.layout = layout_of(model)
        self.model: Any = model  # its modules are typed too narrowly to be called
        self.tokenizer = deepcopy(tokenizer)  # padding changes its state, even where it has a pad token
        self.name = name
        self.revision = revision
        self._check_mode()
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise MegaValueError("the tokenizer must have a pad or an end-of-sequence token, but got neither.")
            self.tokenizer.pad_token = tokenizer.eos_token
        probe = self._ids(_PROBE)
        decoded = self.tokenizer.decode(probe, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if decoded != _PROBE:
            raise MegaValueError(f"the tokenizer must give back {_PROBE!r} after a round trip, but got {decoded!r}.")
        self.prepends_bos = probe[0] == tokenizer.bos_token_id

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, {self.config.model_type}, {self.n_layers} blocks of width {self.width})"

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the decoder, also where it is a part of a model that reads images."""
        return text_config(self.model)

    @property
    def site_kinds(self) -> tuple[SiteKind, ...]:
        """The sites that each block has, in the order in which a forward pass reaches them."""
        return self.layout.site_kinds

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Device that takes the token ids."""
        weight: Tensor = next(self.model.get_input_embeddings().parameters())
        return weight.device

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(blocks(self.model))

    @property
    def width(self) -> int:
        """Width D of the stream."""
        return int(self.config.hidden_size)

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """What tells this backbone from another, as it is when this is first read.

        The keys are `model_type`, `layers`, `width`, `heads`, `vocab`, `tokenizer` and `weights`. `tokenizer` is the
        SHA-256 of the vocabulary and of the ids of one sentence. `weights` is the SHA-256 of the first 64 rows of the
        token embedding, of every parameter of the first and the last block and of the final norm, each rounded to
        float16: a float16 copy has the same digest, a bfloat16 copy has another unless the weights are representable
        in both. Changes elsewhere in the model are not seen; `digest` sees them all.
        """
        config = self.config
        return {
            "model_type": self.model.config.model_type,
            "layers": self.n_layers,
            "width": self.width,
            "heads": int(config.num_attention_heads),
            "vocab": int(config.vocab_size),
            "tokenizer": self._tokenizer_digest(),
            "weights": self._weights_digest(),
        }

    def digest(self) -> str:
        """Return the SHA-256 of all weights with their names and dtypes, to prove that a frozen model is frozen."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    def check_sites(self, sites: Iterable[Site]) -> None:
        """Refuse sites that the model does not have.

        Raises:
            ValueError: if a layer is out of range, or the architecture has no site of a kind.
        """
        check_sites(self.model, sites)

    def encode(self, prompts: Sequence[str], padding_side: PaddingSide = "left") -> Encoded:
        """Encode prompts as one padded batch, with the tokenizer's own special tokens.

        Positions are explicit, because GPT-2 would otherwise count the padding.

        Args:
            prompts: B texts of at least one token each.
            padding_side: "left" or "right".

        Raises:
            ValueError: if there is no prompt, one has no token, one is longer than the model reads, or the model is in
                training mode.
            TypeError: if a single text is given.
        """
        if isinstance(prompts, str):
            raise MegaTypeError("`prompts` must be a sequence of texts, but got a single text; put it into a list.")
        if padding_side not in get_args(PaddingSide):
            raise MegaValueError(f"`padding_side` must be left or right, but got {padding_side!r}.")
        if not prompts:
            raise MegaValueError("`prompts` must hold at least one text, but got none.")
        self._check_mode()
        ids = self.tokenizer(list(prompts))["input_ids"]
        self._check_lengths(prompts, [len(row) for row in ids])
        return self.pad(ids, padding_side)

    def pad(self, ids: Sequence[Sequence[int]], padding_side: PaddingSide = "left") -> Encoded:
        """Put texts that are ids into one batch.

        The tokenizer is not asked to, because that changes its state, which threads share.

        Args:
            ids: B rows of at least one id each, special tokens included.
            padding_side: "left" or "right".
        """
        rows = [torch.tensor(list(row), dtype=torch.long) for row in ids]
        padded, mask = (
            pad_sequence(values, batch_first=True, padding_value=fill, padding_side=padding_side).to(self.device)
            for values, fill in ((rows, self.tokenizer.pad_token_id), ([torch.ones_like(row) for row in rows], 0))
        )
        columns = torch.arange(mask.shape[1], device=mask.device)
        return Encoded(padded, mask, (mask.cumsum(-1) - 1).clamp(min=0), (mask * columns).argmax(-1))

    @torch.no_grad()
    def loglikelihood(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Return how probable continuations are after prompts, with every edit in force.

        Both are read in one pass, in which an edit acts where the prompt ends and inside its object, as it does when
        the model writes. This is what evaluation harnesses ask for under this name.

        Args:
            prompts: B texts.
            continuations: B texts that follow the prompts verbatim, with the space before them if there is one.

        Returns:
            For each pair the sum of the log-probabilities of the continuation's tokens, in nats, and whether each of
            them is the likeliest one.

        Raises:
            TypeError: if a single text is given.
            ValueError: as `encode`; if the lengths differ, or a continuation has no token or merges with its prompt.
        """
        for name, texts in (("prompts", prompts), ("continuations", continuations)):
            if isinstance(texts, str):
                raise MegaTypeError(f"`{name}` must be a sequence of texts, but got a single text; put it into a list.")
        if len(prompts) != len(continuations) or not prompts:
            raise MegaValueError(
                "`prompts` and `continuations` must be equally many texts, at least one, but got "
                f"{len(prompts)} and {len(continuations)}."
            )
        starts = [self._ids(prompt) for prompt in prompts]
        texts = [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]
        wholes = [self._ids(text) for text in texts]
        self._check_lengths(prompts, [len(start) for start in starts])
        self._check_lengths(texts, [len(whole) for whole in wholes])
        for prompt, text, start, whole in zip(prompts, continuations, starts, wholes, strict=True):
            if len(whole) <= len(start) or whole[: len(start)] != start:
                raise MegaValueError(
                    f"a continuation must add tokens to its prompt, but {text!r} adds none to {prompt[-40:]!r} or "
                    "merges with it; end the prompt at a word, and begin the continuation with the space."
                )
        encoded, longest = self.pad(wholes), max(len(w) - len(s) for s, w in zip(starts, wholes, strict=True))
        with prompt_lengths([len(start) for start in starts]):
            logits = self.model(**encoded.inputs, use_cache=False, logits_to_keep=longest + 1).logits
        found = []
        for row, start, whole in zip(logits.float().log_softmax(-1), starts, wholes, strict=True):
            index = torch.tensor(whole[len(start) :], device=row.device)
            of_text = row[-len(index) - 1 : -1]
            chances = of_text.gather(1, index[:, None]).sum()
            found.append((float(chances), bool((of_text.argmax(-1) == index).all())))
        return found

    def answer_ids(self, prompt: str, answer: str) -> list[int]:
        """Return the ids that an answer has after a prompt and what joins them, as `joint` says.

        The answer is never encoded alone, because its first token depends on what stands before it.

        Args:
            prompt: the text that the model reads.
            answer: the text that should follow, without a space before it.

        Raises:
            ValueError: if the answer is empty, or the prompt's ids are not the first ids of the whole.
        """
        if not answer.strip():
            raise MegaValueError(f"`answer` must not be empty, but got {answer!r}.")
        before, whole = self._ids(prompt), self._ids(f"{prompt}{joint(prompt)}{answer}")
        if whole[: len(before)] != before:
            raise MegaValueError(
                f"the ids of `prompt` must be a prefix of the ids with its answer, but {prompt!r} and {answer!r} "
                "merge; end the prompt at a word."
            )
        return whole[len(before) :]

    @torch.no_grad()
    def last_logits(self, encoded: Encoded) -> Tensor:
        """Return the logits (B, V) after each row's last token, in float32."""
        width = encoded.input_ids.shape[1]
        if bool((encoded.last == width - 1).all()):
            kept: Tensor = self.model(**encoded.inputs, use_cache=False, logits_to_keep=1).logits
            return kept[:, -1].float()
        logits: Tensor = self.model(**encoded.inputs, use_cache=False).logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, encoded.last.to(logits.device)].float()

    @overload
    def generate(self, texts: str, *, max_new_tokens: int = ..., **options: Any) -> str: ...  # noqa: ANN401
    @overload
    def generate(self, texts: Sequence[str], *, max_new_tokens: int = ..., **options: Any) -> list[str]: ...  # noqa: ANN401

    @torch.no_grad()
    def generate(
        self,
        texts: str | Sequence[str],
        *,
        max_new_tokens: int = 20,
        **options: Any,
    ) -> str | list[str]:
        """Write on after texts, greedily unless the options say otherwise, with every edit in force.

        Args:
            texts: what the model reads, as it is; one text, or a sequence.
            max_new_tokens: the most tokens of a continuation.
            options: of the model's own `generate`, such as `do_sample`, `num_beams` or `stop_strings`.

        Returns:
            What follows each text, verbatim: one text for one, or a list.

        Raises:
            ValueError: as `encode`; if a continuation may not fit into what the model reads, or the options change what
                is given back.
        """
        for name, usual in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
            if options.get(name, usual) != usual:
                raise MegaValueError(
                    f"each text must get one continuation, but got `{name}` {options[name]}; use `model.generate`."
                )
        encoded = self.encode([texts] if isinstance(texts, str) else texts, "left")
        limit, longest = (
            getattr(self.config, "max_position_embeddings", None),
            int(encoded.attention_mask.sum(-1).max()),
        )
        if limit is not None and longest + max_new_tokens > limit:
            raise MegaValueError(
                f"`max_new_tokens` must be at most {limit - longest} after these texts for a model of {limit} tokens, "
                f"but got {max_new_tokens}; take fewer."
            )
        given = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, "tokenizer": self.tokenizer}
        ids = self.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=max_new_tokens,
            **{**given, **options},
        )
        start = encoded.input_ids.shape[1]
        continuations = [
            self.continuation(row[:start][mask.bool()].tolist(), row[start:].tolist())
            for row, mask in zip(ids, encoded.attention_mask, strict=True)
        ]
        return continuations[0] if isinstance(texts, str) else continuations

    def continuation(self, start: Sequence[int], new: Sequence[int]) -> str:
        """Return what new ids add to the text of the first ones; alone, their first space could get lost in decoding.

        Args:
            start: ids of the text.
            new: ids that follow it.
        """
        before, whole = (
            str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids in ([*start], [*start, *new])
        )
        return whole[len(before) :]

    def _check_mode(self) -> None:
        if self.model.training:
            raise MegaValueError(
                "the model must be in evaluation mode, but got one in training mode; call `model.eval()`."
            )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _check_lengths(self, prompts: Sequence[str], lengths: list[int]) -> None:
        limit = getattr(self.config, "max_position_embeddings", None)
        for prompt, length in zip(prompts, lengths, strict=True):
            if length == 0:
                raise MegaValueError(f"a prompt must have at least one token, but got {prompt!r}.")
            if limit is not None and length > limit:
                raise MegaValueError(
                    f"a prompt must have at most {limit} tokens for this model, but got {length}: {prompt[:40]!r}..."
                )

    def _tokenizer_digest(self) -> str:
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(json.dumps([vocabulary, self._ids(_PROBE)]).encode()).hexdigest()

    def _weights_digest(self) -> str:
        decoder = blocks(self.model)
        parts = {
            "embedding": self.model.get_input_embeddings(),
            "first": decoder[0],
            "last": decoder[-1],
            "norm": self.model.get_submodule(self.layout.final_norm),
        }
        digest = hashlib.sha256()
        for part, module in parts.items():
            for name, parameter in module.named_parameters():
                digest.update(f"{part}.{name} {tuple(parameter.shape)}".encode())
                digest.update(_bytes(parameter[:_DIGEST_ROWS].half()))
        return digest.hexdigest()


def _unwrapped(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model inside PEFT's wrapper, through which both generate; its adapters stay in it.

    Raises:
        ValueError: if an adapter puts virtual tokens before the text.
    """
    adapters = getattr(model, "peft_config", None)
    if not adapters or not hasattr(model, "get_base_model"):
        return model
    virtual = next((name for name, config in adapters.items() if config.is_prompt_learning), None)
    if virtual is not None:
        raise MegaValueError(
            f"the model's adapters must leave the text as it is, but {virtual!r} puts virtual tokens before it; "
            "edit the model without it."
        )
    base: PreTrainedModel = model.get_base_model()  # type: ignore[operator]
    return base


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
