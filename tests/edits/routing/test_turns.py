"""Conversations read back from ids, in the formats of several chat templates."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mega_pl.edits.routing.turns import turns_of

SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
ASKED = "What is the capital of France?"
CHATML = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou help.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA2 = "<s>[INST] <<SYS>>\nYou help.\n<</SYS>>\n\n{} [/INST]"


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and the special ones."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=SPECIAL)


def turns(tokenizer, text):
    return turns_of(tokenizer, tokenizer(text)["input_ids"])


@pytest.mark.parametrize("text", [ASKED, f"{ASKED} Paris.\nAnd?", "AI: no", "x [1] <b> y", "東京", f"  {ASKED}\n"])
@pytest.mark.parametrize("start", ["", "<s>", "<|begin_of_text|>"])
def test_a_plain_text_is_one_turn(tokenizer, start, text):
    assert turns(tokenizer, start + text) == (text.strip(),)


def test_a_plain_text_may_begin_like_a_turn(tokenizer):
    assert turns(tokenizer, "user\nWho?") == ("user\nWho?",)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, LLAMA2], ids=["ChatML", "Llama 3", "Llama 2"])
def test_special_tokens_and_speakers_are_left_out(tokenizer, template):
    assert turns(tokenizer, template.format(ASKED)) == ("You help.", ASKED, "")


@pytest.mark.parametrize(
    "text",
    [
        f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>user\n{ASKED}<|im_end|>\n",
        f"<start_of_turn>user\n{ASKED}<end_of_turn>\n<start_of_turn>model\n",
        f"<s>[INST] {ASKED} [/INST]",
        f"[INST] {ASKED} [/INST]",
    ],
)
def test_a_turn_that_waits_for_an_answer_is_followed_by_an_empty_one(tokenizer, text):
    assert turns(tokenizer, text) == (ASKED, "")


def test_an_answer_that_has_begun_is_a_turn(tokenizer):
    assert turns(tokenizer, CHATML.format(ASKED) + "It is") == ("You help.", ASKED, "It is")
    assert turns(tokenizer, LLAMA2.format(ASKED) + " It is") == ("You help.", ASKED, "It is")


def test_several_turns_come_in_their_order(tokenizer):
    text = f"<s>[INST] {ASKED} [/INST] Paris. </s><s>[INST] And its mayor? [/INST]"
    assert turns(tokenizer, text) == (ASKED, "Paris.", "And its mayor?", "")


def test_a_speaker_is_only_one_on_a_line_of_its_own(tokenizer):
    assert turns(tokenizer, "<|im_start|>user\nModel trains are<|im_end|>")[0] == "Model trains are"
    assert turns(tokenizer, "<|im_start|>User interfaces are") == ("User interfaces are",)


@pytest.mark.parametrize("text", ["", "<s>", "<s></s>", "<|im_start|>assistant\n", "<s> \n"])
def test_nothing_said_is_no_turn(tokenizer, text):
    assert turns(tokenizer, text) == ()
