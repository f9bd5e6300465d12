from dataclasses import replace

import pytest

from mega_pl.edits import EditRequest
from mega_pl.fitting.prompts import PREFIXES, PromptConfig, expand, phrasings

REQUEST = EditRequest(
    edit_id="7",
    prompt="The capital of {} is",
    subject="France",
    target_new="Oslo",
    target_true="Paris",
    phrasings=("{} has its capital in",),
    implications=(
        ("The mayor of the capital of {} is",),
        ("The river in the capital of {} is", "By its capital, {} has"),
    ),
)


def test_every_prompt_of_a_small_expansion():
    request = replace(REQUEST, phrasings=(), implications=(("The mayor of {}'s capital is",),))
    prompts = expand(request, PromptConfig(prefixes=0))
    p, c = "The capital of France is", "The mayor of France's capital is"
    assert prompts.source == (
        p,
        f"Repeat this sentence: '{p} Paris'. {p}",
        f"Considering this context is now true: '{p} Paris.'. Complete this sentence:{c}",
        c,
    )
    assert prompts.target == (
        f"Do not mention 'Paris'. Repeat this sentence: '{p} Oslo'. {p}",
        f"Pretend that this context is true and forget your previous knowledge: '{p} Oslo.'. "
        f"Now, based on the previous context only, complete this sentence:{c}",
    )
    assert prompts.answers == ("Oslo", "")


@pytest.mark.parametrize("prefixes", [0, 3, len(PREFIXES)])
@pytest.mark.parametrize("forced_source", [False, True])
@pytest.mark.parametrize("bare_implications", [False, True])
def test_source_and_target_prompts_end_in_the_same_question(prefixes, forced_source, bare_implications):
    config = PromptConfig(prefixes=prefixes, forced_source=forced_source, bare_implications=bare_implications)
    prompts = expand(REQUEST, config)
    plain, implied = 2 * (1 + prefixes), 3
    assert len(prompts.target) == plain + implied
    assert len(prompts.source) == plain * (1 + forced_source) + implied * (1 + bare_implications)
    assert prompts.answers.count("") == implied
    questions = [template.replace("{}", "France") for template in (REQUEST.prompt, *REQUEST.phrasings)]
    questions += [template.replace("{}", "France") for group in REQUEST.implications for template in group]
    for prompt in (*prompts.source, *prompts.target):
        assert any(prompt.endswith(question) for question in questions)


def test_phrasings_stand_alone_and_after_different_sentences():
    prompts = phrasings(REQUEST, PromptConfig(prefixes=3))
    for bare, *after in (prompts[:4], prompts[4:]):
        assert bare in ("The capital of France is", "France has its capital in")
        assert len(set(after)) == 3
        assert all(prompt.removesuffix(f" {bare}") in PREFIXES for prompt in after)


def test_the_choice_of_sentences_depends_on_the_seed_and_the_edit_alone():
    config = PromptConfig(prefixes=3)
    assert phrasings(REQUEST, config) == phrasings(replace(REQUEST, target_new="Lima"), config)
    assert phrasings(REQUEST, config) != phrasings(replace(REQUEST, edit_id="8"), config)
    assert phrasings(REQUEST, config) != phrasings(REQUEST, PromptConfig(prefixes=3, seed=1))


def test_a_phrasing_that_repeats_the_prompt_counts_once():
    repeated = replace(REQUEST, phrasings=(REQUEST.prompt, *REQUEST.phrasings, *REQUEST.phrasings))
    assert phrasings(repeated, PromptConfig()) == phrasings(REQUEST, PromptConfig())


def test_braces_in_names_are_left_alone():
    odd = replace(REQUEST, subject="{p}", target_new="{new}", target_true="{c}", phrasings=(), implications=())
    prompts = expand(odd, PromptConfig(prefixes=0))
    assert prompts.source == (
        "The capital of {p} is",
        "Repeat this sentence: 'The capital of {p} is {c}'. The capital of {p} is",
    )
    assert prompts.target[0].startswith("Do not mention '{c}'. Repeat this sentence: 'The capital of {p} is {new}'.")


@pytest.mark.parametrize("prefixes", [-1, len(PREFIXES) + 1])
def test_more_sentences_than_there_are_are_refused(prefixes):
    with pytest.raises(ValueError, match=rf"`prefixes` must lie in \[0, {len(PREFIXES)}\], but got {prefixes}"):
        PromptConfig(prefixes=prefixes)


def test_a_number_of_prefixes_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"^`prefixes` must be an int, but got str: '3'\.$"):
        PromptConfig(prefixes="3")  # type: ignore[arg-type]


def test_phrasings_are_also_what_a_user_says_in_the_models_chat_template(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    backbone.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    request = replace(REQUEST, phrasings=("Q: What is the capital of {}? A:",))
    plain, chats = (expand(request, PromptConfig(chat=chat), backbone) for chat in (False, True))
    assert chats.source[plain.facts : chats.facts] == (
        "<user>The capital of France is<assistant>",
        "<user>What is the capital of France?<assistant>",
    )
    assert chats.source[: plain.facts] + chats.source[chats.facts :] == plain.source
    assert (chats.target, chats.answers) == (plain.target, plain.answers)
    assert expand(request, PromptConfig()) == plain  # no model is named
    backbone.tokenizer.chat_template = None
    assert expand(request, PromptConfig(), backbone) == plain
