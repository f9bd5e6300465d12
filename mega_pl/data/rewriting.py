"""Phrasings of an edit written by a local instruction model that the user names."""

from __future__ import annotations

import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mega_pl.backbone import Dtype
from mega_pl.data.records import to_template
from mega_pl.edits.request import EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical, find_all

INSTRUCTION = (
    "Here is the beginning of a sentence: {prompt}\n"
    "Its last words, which are missing, are: {true}\n"
    "Write {n} other beginnings with the same meaning, so that the same last words can follow each of them.\n"
    "Rules: the words {subject} stand in every beginning exactly once; the words {true} stand in none; a beginning is "
    "neither a question nor a whole sentence, and has no dots or blanks at its end; vary the words and their order.\n"
    "Answer with the beginnings only, one a line."
)
"""What the model is asked; prompt is the edit prompt, true the old object, n a number."""

_MARK = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])?\s*")
_GAP = re.compile(r"\s*(?:_{2,}|\.{2,}|…)[\s.]*$")
_UNFINISHED = re.compile(r"[\w,)]$")
_QUOTES = "\"'`\u201c\u201d\u2018\u2019 "


def read_rewrites(text: str, request: EditRequest) -> tuple[str, ...]:
    """The lines of an answer that can serve as templates of an edit.

    Numbers, bullets and quotes around a line are dropped, and so is what stands for the object at its end: dots, a
    blank, or the old object itself. Of the rest a line is kept if the subject stands in it exactly once, neither
    object does, and it is not finished: it ends in a word.

    Args:
        text: What a model wrote, one rewrite a line.
        request: The edit.
    """
    templates = (_template(line, request) for line in text.splitlines())
    return tuple(dict.fromkeys(template for template in templates if template))


def _template(line: str, request: EditRequest) -> str | None:
    words = _GAP.sub("", _MARK.sub("", line).strip(_QUOTES))
    ends = [start for start, end in find_all(words, request.target_true, case=True) if words[end:] in ("", ".")]
    words = words[: ends[-1]].rstrip() if ends else words
    template = to_template(words, request.subject)
    if template is None or not _UNFINISHED.search(template):
        return None
    # looked for outside the subject, which may hold the object: a Ferrari is made by Ferrari
    reveals = any(canonical(target) in canonical(template) for target in (request.target_true, request.target_new))
    return None if reveals else template


class ParaphraseModel:
    """Rewrites the prompts of edits with an instruction model; a `Rewrite` for `with_phrasings`.

    Args:
        model: A causal language model that follows instructions; it is used in evaluation mode.
        tokenizer: Its tokenizer; the instruction goes through its chat template, if it has one.
        n: Rewrites to ask for.
        max_new_tokens: The most tokens of an answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        n: int = 20,
        max_new_tokens: int = 600,
    ) -> None:
        for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise MegaValueError(f"`{name}` must be at least 1, but got {value}.")
        self.model = model.train(False)
        self.tokenizer = tokenizer
        self.n = n
        self.max_new_tokens = max_new_tokens

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        device_map: str | None = None,
        n: int = 20,
        max_new_tokens: int = 600,
    ) -> ParaphraseModel:
        """Load a model and its tokenizer from a folder or from the Hugging Face hub.

        Args:
            name_or_path: A folder, or a name on the hub.
            revision: Branch, tag or commit on the hub.
            dtype: dtype of the weights; "auto" keeps the checkpoint's.
            device_map: Where Accelerate puts the weights; None keeps them on the CPU.
            n: Rewrites to ask for.
            max_new_tokens: The most tokens of an answer.

        Raises:
            ValueError: If loading fails.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
            model = AutoModelForCausalLM.from_pretrained(
                name_or_path, revision=revision, dtype=dtype, device_map=device_map
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise MegaValueError(
                f"`name_or_path` must be a folder or a hub name that loads, but got {name_or_path!r}: {reason}"
            ) from error
        return cls(model, tokenizer, n=n, max_new_tokens=max_new_tokens)

    def __call__(self, request: EditRequest) -> tuple[str, ...]:
        """Templates of the edit's fact."""
        instruction = INSTRUCTION.format(
            prompt=request.filled, true=request.target_true, subject=request.subject, n=self.n
        )
        return read_rewrites(self.answer(instruction), request)

    @torch.no_grad()
    def answer(self, instruction: str) -> str:
        """What the model answers to an instruction, without drawing."""
        text = instruction
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": instruction}]
            text = str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=not self.tokenizer.chat_template)
        inputs = inputs.to(self.model.device)
        ids = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return str(self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
