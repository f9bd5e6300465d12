import pytest
import torch
from transformers import AutoTokenizer

from mega_pl.backbone import Backbone
from mega_pl.editors.contexts import STARTS, Wordings, sample_contexts, subject_positions
from tests.editors.conftest import DARRIEUX, FRANCE

TEXTS = [
    ("The capital of France is", "France"),
    ("France", "France"),
    ("It was late. The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
    ("Zoë's caf\u00e9 in \u00c5rhus", "Zoë"),
    ("\u00c5rhus, \u4e1c\u4eac and Rome", "\u4e1c\u4eac"),
    ("The Beatles' drummer was", "The Beatles"),
    ("Rome is near Rome", "Rome"),
]


def end_of(text, subject):
    return text.index(subject) + len(subject)


def slow_position(tokenizer, text, end):
    """The first token with which the decoded text is as long as the subject reaches."""
    ids = tokenizer(text)["input_ids"]
    for i in range(len(ids)):
        decoded = tokenizer.decode(ids[: i + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if decoded.startswith(text[:end]):
            return i
    raise AssertionError(text)


def check_positions(backbone):
    texts, ends = [text for text, _ in TEXTS], [end_of(*pair) for pair in TEXTS]
    positions = subject_positions(backbone, texts, ends)
    lengths = backbone.encode(texts).attention_mask.sum(1).tolist()
    slow = [slow_position(backbone.tokenizer, *pair) for pair in zip(texts, ends, strict=True)]
    assert positions.tolist() == [max(lengths) - n + i for n, i in zip(lengths, slow, strict=True)]


def test_the_subjects_last_token_is_found_behind_any_padding(backbone):
    check_positions(backbone)


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_the_subjects_last_token_is_found_by_real_tokenizers(tiny_model, shared_tokenizers, name):
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizers / name)
    check_positions(Backbone(tiny_model("gpt2", {"vocab_size": len(tokenizer)}), tokenizer))


def test_a_slow_tokenizer_is_refused(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("gpt2")
    monkeypatch.setattr(type(backbone.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="must tell which characters a token is of"):
        subject_positions(backbone, ["Rome is"], [4])


def test_an_edits_prompt_is_asked_after_each_context():
    asked = Wordings.of(DARRIEUX, ("", "It rains. "))
    assert asked.texts == (DARRIEUX.filled, f"It rains. {DARRIEUX.filled}")
    assert [text[:end] for text, end in zip(asked.texts, asked.subject_ends, strict=True)] == [
        "The mother tongue of Danielle Darrieux",
        "It rains. The mother tongue of Danielle Darrieux",
    ]


def test_contexts_are_the_models_own_and_can_stand_before_any_prompt(backbone):
    state = torch.random.get_rng_state()
    contexts = sample_contexts(backbone, ((5, 3), (9, 7)), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(contexts) == 11
    assert contexts[0] == ""
    for i, context in enumerate(contexts[1:]):
        assert context.startswith(STARTS[(i if i < 3 else i - 3) % 5])
        assert context.endswith(". ")
        assert not set("{}\n\ufffd") & set(context)
        backbone.answer_ids(context + FRANCE.filled, "Rome")
    assert sample_contexts(backbone, ((5, 3), (9, 7)), seed=3) == contexts
    assert sample_contexts(backbone, ((5, 3), (9, 7)), seed=4) != contexts
    assert sample_contexts(backbone, (), seed=3) == ("",)
