"""Every prompt, answer and alias of the real records through the real tokenizers of GPT-2 and LLaMA-2."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mega_pl.data import DataFile, read, with_phrasings
from mega_pl.data.questions import QuestionForm
from mega_pl.edits.request import EditCase
from mega_pl.edits.routing.question import last_questions
from mega_pl.edits.routing.subjects import SubjectFinder

Pair = tuple[str, str]

TOKENIZERS = ("gpt2", "llama2")

SAME_FIRST = {
    "gpt2": {"counterfact": 0, "easyedit": 0, "rippleedits": 2, "knowedit": 2, "zsre": 46},
    "llama2": {"counterfact": 3, "easyedit": 8, "rippleedits": 16, "knowedit": 16, "zsre": 158},
}
"""Edits whose two objects start with the same token: measures that look at the first token cannot judge these."""


def load(folder: Path, name: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder / name)
    return tokenizer


def pairs(case: EditCase) -> Iterator[Pair]:
    """Every prompt with every answer that something may look for after it."""
    request = case.request
    questions = [template.replace("{}", request.subject) for template in (request.prompt, *request.phrasings)]
    questions += [*case.paraphrase_prompts, *case.neighborhood_prompts]
    questions += [*case.attribute_prompts, *case.generation_prompts]
    yield from ((question, o) for question in questions for o in (request.target_new, request.target_true))
    for probes in (
        case.relation_specificity,
        case.compositionality_1,
        case.compositionality_2,
        case.subject_aliasing,
        case.locality,
        case.portability,
    ):
        for probe in probes:
            yield from ((probe.prompt, answer) for answer in probe.answers)
            yield from ((probe.condition_prompt, answer) for answer in probe.condition_answers)
    for test in case.ripple:
        for query in (*test.queries, *test.conditions):
            yield from ((query.prompt, name) for names in query.answers for name in names)


def encoded(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, list[int]]:
    """The ids of many texts, in one batch of the tokenizer's own backend."""
    different = list(dict.fromkeys(texts))
    batch = tokenizer.backend_tokenizer.encode_batch_fast(different)
    return {text: encoding.ids for text, encoding in zip(different, batch, strict=True)}


@pytest.fixture(scope="module")
def questions(shared_data: Path) -> list[list[EditCase]]:
    """WikiBigEdit's questions, bare and between "Q:" and "A:", and zsRE's so."""
    wikibigedit = DataFile(shared_data / "scale" / "wikibigedit_1500.json", "wikibigedit")
    posed = [replace(wikibigedit, question_form=form) for form in get_args(QuestionForm)]
    posed.append(DataFile(shared_data / "zsre" / "zsre_eval.json", "zsre", question_form="qa"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [read(file, on_bad="skip", ask=lambda prompts: ["nothing" for _ in prompts]) for file in posed]


@pytest.fixture(scope="module")
def real_pairs(real_cases: dict[str, list[EditCase]], questions: list[list[EditCase]]) -> list[Pair]:
    """All pairs, with the phrasings that edits are fitted on; KnowEdit's are RippleEdits'."""
    files = (*(cases for name, cases in real_cases.items() if name != "knowedit"), *questions)
    return list(dict.fromkeys(pair for cases in files for case in with_phrasings(cases) for pair in pairs(case)))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_ids_of_a_prompt_are_a_prefix_of_those_with_its_answer(
    shared_tokenizers: Path, real_pairs: list[Pair], name: str
) -> None:
    tokenizer = load(shared_tokenizers, name)
    prompts = encoded(tokenizer, (prompt for prompt, _ in real_pairs))
    wholes = encoded(tokenizer, (f"{prompt} {answer}" for prompt, answer in real_pairs))
    broken = []
    for prompt, answer in real_pairs:
        before, whole = prompts[prompt], wholes[f"{prompt} {answer}"]
        if whole[: len(before)] != before or len(whole) == len(before):
            broken.append((prompt, answer))
    assert broken == []
    assert len(real_pairs) > 150_000
    sample = real_pairs[::5000]
    assert tokenizer([prompt for prompt, _ in sample])["input_ids"] == [prompts[prompt] for prompt, _ in sample]


def test_the_subject_of_a_question_is_found_in_every_form(questions: list[list[EditCase]]) -> None:
    for cases in questions:
        names: dict[str, list[int]] = {}
        for i, case in enumerate(cases):
            names.setdefault(case.request.subject, []).append(i)
        finder = SubjectFinder(names)
        for prompts, least in (
            ([[case.request.filled] for case in cases], 0.999),
            ([[t.replace("{}", case.request.subject) for t in case.request.phrasings] for case in cases], 0.999),
            ([case.paraphrase_prompts for case in cases], 0.93),  # some of these do not name the subject so
        ):
            found = [
                any(i in question.edits for question in last_questions([prompt], finder))
                for i, of_case in enumerate(prompts)
                for prompt in of_case
            ]
            assert sum(found) >= least * len(found)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_that_ends_in_a_space_would_break_the_rule(shared_tokenizers: Path, name: str) -> None:
    ids = encoded(load(shared_tokenizers, name), ("The capital of France is ", "The capital of France is Paris"))
    before, whole = ids.values()
    assert whole[: len(before)] != before


@pytest.mark.parametrize("name", TOKENIZERS)
def test_edits_whose_objects_start_alike_are_known(
    shared_tokenizers: Path, real_cases: dict[str, list[EditCase]], name: str
) -> None:
    tokenizer = load(shared_tokenizers, name)
    alike = {}
    for file, cases in real_cases.items():
        prompts = [case.request.filled for case in cases]
        new = [f"{case.request.filled} {case.request.target_new}" for case in cases]
        true = [f"{case.request.filled} {case.request.target_true}" for case in cases]
        ids = encoded(tokenizer, (*prompts, *new, *true))
        firsts = ((len(ids[p]), ids[a], ids[b]) for p, a, b in zip(prompts, new, true, strict=True))
        alike[file] = sum(a[at] == b[at] for at, a, b in firsts)
    assert alike == SAME_FIRST[name]


def test_llama2_starts_with_bos_and_gives_a_number_a_token_for_its_space(shared_tokenizers: Path) -> None:
    tokenizer = load(shared_tokenizers, "llama2")
    assert tokenizer.bos_token_id == 1
    assert tokenizer("English")["input_ids"] == [1, 4223]
    assert tokenizer(" English")["input_ids"] == [1, 29871, 4223]  # which is why no answer is encoded alone
    assert tokenizer("They speak English")["input_ids"][-1] == 4223
    year = tokenizer("Born in 1904")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(year[-5:]) == ["\u2581", "1", "9", "0", "4"]
    assert str(tokenizer.decode([29871])).strip() == ""


def test_gpt2_starts_with_no_special_token(shared_tokenizers: Path) -> None:
    tokenizer = load(shared_tokenizers, "gpt2")
    assert tokenizer("English")["input_ids"] == [15823]
    assert tokenizer(" English")["input_ids"] == [3594] != tokenizer("English")["input_ids"]
    assert tokenizer("They speak English")["input_ids"][-1] == 3594
