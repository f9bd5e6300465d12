from dataclasses import replace

import pytest
import torch

from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Ike, IkeConfig
from mega_pl.editors.ike import demonstrations
from mega_pl.editors.retrieval import WordSimilarity, similarity
from mega_pl.edits import EditCase
from mega_pl.functional.text import Tfidf
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, POOL, capital

ITALY, SPAIN = POOL
SHOWN = [
    "New Fact: The capital of Italy is Paris\nPrompt: The capital of Italy is Paris\n\n",
    "New Fact: The capital of Italy is Paris\nPrompt: Italy is ruled from Paris\n\n",
    "New Fact: The capital of Italy is Paris\nPrompt: The capital of Latium is Rome\n\n",
]


def test_a_case_shows_itself_another_phrasing_and_a_neighbour():
    assert list(demonstrations(ITALY)) == SHOWN
    assert demonstrations(SPAIN)[1].endswith("Prompt: Spain has its capital in London\n\n")  # of the request
    assert len(demonstrations(SPAIN)) == 2
    assert len(demonstrations(EditCase(request=replace(SPAIN.request, phrasings=())))) == 1


def test_a_prompt_ends_as_it_was_asked_after_the_new_fact(backbone):
    with Ike(IkeConfig(demonstrations=4), POOL).edit(backbone, [FRANCE]) as edited:
        text = edited.prompt("France has its capital in")
    head, fact, prompt = text.rpartition("New Fact: The capital of France is Rome\nPrompt: ")
    assert fact
    assert prompt == "France has its capital in"
    assert head.count("New Fact: ") == 4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_most_similar_demonstrations_come_first(backbone, count):
    ike = Ike(IkeConfig(demonstrations=count), POOL)
    query = f"New Fact: {FRANCE.filled} Rome\nPrompt: {FRANCE.filled}\n\n"
    tfidf = Tfidf.fit(ike.demonstrations)
    ranked = sorted(ike.demonstrations, key=lambda text: -tfidf.cosine(query, text))[:count]
    assert ike.most_like(FRANCE) == ranked
    with ike.edit(backbone, [FRANCE]) as edited:
        assert edited.prompt("x") == "".join(ranked) + "New Fact: The capital of France is Rome\nPrompt: x"


def test_without_a_pool_only_the_fact_is_told(backbone):
    with Ike().edit(backbone, [FRANCE]) as edited:
        assert edited.prompt("x") == "New Fact: The capital of France is Rome\nPrompt: x"
        assert edited.fired is None


def test_of_many_edits_the_most_similar_is_told(backbone):
    with Ike(pool=POOL).edit(backbone, [FRANCE, GERMANY, DARRIEUX]) as edited:
        for prompt, told in (
            ("Germany has its capital in", "The capital of Germany is London"),
            ("As a child, Danielle Darrieux spoke", "The mother tongue of Danielle Darrieux is English or Spanish"),
            ("The capital of France is", "The capital of France is Rome"),
        ):
            assert edited.prompt(prompt).rpartition("New Fact: ")[2] == f"{told}\nPrompt: {prompt}"


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_least_similar_are_left_out_for_want_of_room(tiny_backbone, model_type):
    backbone = tiny_backbone(model_type)
    ike = Ike(IkeConfig(demonstrations=5, reserve=7), POOL)
    ranked, asked = ike.most_like(FRANCE), "New Fact: The capital of France is Rome\nPrompt: x"
    for kept in (5, 3, 0):
        tokens = len(backbone.tokenizer("".join(ranked[:kept]) + asked)["input_ids"])
        backbone.model.config.max_position_embeddings = tokens + 7
        with ike.edit(backbone, [FRANCE]) as edited:
            assert edited.prompt("x") == "".join(ranked[:kept]) + asked


def test_a_pool_that_holds_the_edit_is_refused(backbone):
    known = "`pool` must not hold an edit that is put into force, but has 'italy'"
    with pytest.raises(ValueError, match=known), Ike(pool=POOL).edit(backbone, [FRANCE, ITALY.request]):
        pass
    other_name = replace(ITALY.request, edit_id="other", target_new="London")
    with pytest.raises(ValueError, match="but has 'other'"), Ike(pool=POOL).edit(backbone, [other_name]):
        pass


def test_a_pool_may_be_a_data_module(edits_file):
    ike = Ike(pool=EditDataModule(str(edits_file)))
    assert [case.request.edit_id for case in ike.pool] == ["france", "germany", "darrieux", "italy"]
    assert "'darrieux'" in repr(ike)


@pytest.mark.parametrize("name", ["demonstrations", "reserve"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, but got -1"):
        IkeConfig(**{name: -1})  # type: ignore[arg-type]


def test_cosines_are_those_of_pairs():
    texts = [text for case in POOL for text in demonstrations(case)] + ["?", "nothing alike"]
    alike, tfidf = WordSimilarity(texts), Tfidf.fit(texts)
    for query in ("The capital of Italy", "Paris paris ROME", "unknown words", ""):
        slow = torch.tensor([tfidf.cosine(query, text) for text in texts])
        torch.testing.assert_close(alike(query), slow)


def vowels(texts):
    """Unit vectors of the counts of vowels."""
    counts = torch.tensor([[float(text.count(vowel)) for vowel in "aeiou"] for text in texts])
    return torch.nn.functional.normalize(counts, dim=1)


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr("mega_pl.editors.retrieval.encoder_of", {"vowels": vowels}.get)
    return "vowels"


def test_a_sentence_encoder_can_choose_the_demonstrations(encoder, backbone):
    found = similarity(["aa", "ae", "ee"], encoder)("a")
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5**0.5, 0.0]))
    pool = [EditCase(request=capital(name, name, "B", "C")) for name in ("oooo", "eeee")]
    assert "eeee" in Ike(IkeConfig(demonstrations=1, encoder=encoder), pool).most_like(capital("x", "eee", "B", "C"))[0]
