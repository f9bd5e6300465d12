import json

import pytest
import torch

from mega_pl.backbone import Backbone
from mega_pl.editors import Mom2Config, TextConfig, second_moments
from mega_pl.editors import mom2 as mom2_module
from mega_pl.editors.mom2 import FactoredMoment, factored_moments
from mega_pl.editors.texts import read_texts
from mega_pl.editors.weights import Projection
from tests.editors.conftest import hook_count

TEXTS = [
    "Rome is a city in Italy.",
    "He was born in the city of London and works as a teacher.",
    "",
    "The capital of France is Paris, and 2 + 2 = 4.",
    "Berlin",
    "The official language of the country is English or Spanish. " * 3,
    "The mother tongue of Danielle Darrieux is French.",
]


def given(folder, **settings):
    """A config for texts that are handed over."""
    return Mom2Config(text=TextConfig(source="given", **settings), folder=str(folder))


def keys_of(backbone, layer, texts, limit):
    """Inputs of the projection at every token, text by text."""
    projection, keys = Projection.of(backbone, layer), []
    for text in texts:
        ids = backbone.tokenizer(text)["input_ids"][:limit]
        if ids:
            mask = torch.ones(1, len(ids), dtype=torch.bool)
            with projection.record(mask) as seen, torch.no_grad():
                backbone.model(torch.tensor([ids]))
            keys.append(seen.keys)
    return torch.cat(keys).double()


@pytest.mark.parametrize("context", [None, 9])
def test_it_is_the_moment_of_the_inputs_at_every_token(backbone, tmp_path, context):
    count = hook_count(backbone.model)
    found = second_moments(backbone, [2, 0], given(tmp_path, context=context), TEXTS, save_every=3)
    assert hook_count(backbone.model) == count
    for layer in (2, 0):
        keys = keys_of(backbone, layer, TEXTS, context)
        moment, tokens = found[layer]
        assert tokens == len(keys)
        assert moment.dtype == torch.float32
        torch.testing.assert_close(moment.double(), keys.T @ keys / len(keys), rtol=1e-4, atol=1e-5)


def test_a_pass_that_ends_early_leaves_the_model_sound(backbone, tmp_path):
    encoded = backbone.encode(["Rome is"])
    with torch.no_grad():
        before = backbone.model(**encoded.inputs, output_hidden_states=True)
        second_moments(backbone, [0], given(tmp_path), TEXTS)
        after = backbone.model(**encoded.inputs, output_hidden_states=True)
    assert torch.equal(before.logits, after.logits)
    assert len(after.hidden_states) == backbone.n_layers + 1


@pytest.mark.parametrize("save_every", [1, 2, 5, 100])
def test_where_the_state_is_saved_does_not_matter(backbone, tmp_path, save_every):
    once, _ = second_moments(backbone, [1], given(tmp_path / "a"), TEXTS)[1]
    often, _ = second_moments(backbone, [1], given(tmp_path / "b"), TEXTS, save_every=save_every)[1]
    torch.testing.assert_close(once, often, rtol=1e-5, atol=1e-6)


def broken_off(texts, after):
    """Texts whose source breaks down."""
    yield from texts[:after]
    raise OSError("connection lost")


def test_a_pass_that_was_broken_off_ends_in_the_same_moments_to_the_bit(backbone, tmp_path):
    whole = second_moments(backbone, [1, 2], given(tmp_path / "a"), TEXTS, save_every=2)
    with pytest.raises(OSError, match="connection lost"):
        second_moments(backbone, [1, 2], given(tmp_path / "b"), broken_off(TEXTS, 5), save_every=2)
    (partial,) = (tmp_path / "b").glob("*.partial")
    read = []

    def counted():
        for text in TEXTS:
            read.append(text)
            yield text

    resumed = second_moments(backbone, [1, 2], given(tmp_path / "b"), counted(), save_every=2)
    assert not partial.exists()
    for layer in (1, 2):
        assert torch.equal(resumed[layer][0], whole[layer][0])
        assert resumed[layer][1] == whole[layer][1]


def test_the_models_own_text_is_gone_on_with(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("mega_pl.editors.texts.OWN_GROUP", 4)
    backbone, config = tiny_backbone("gpt2"), TextConfig(documents=10, context=12)
    texts = list(read_texts(backbone, config))
    assert len(texts) == 10
    assert len(set(texts)) > 5
    for skip in (3, 4, 9, 10):
        assert list(read_texts(backbone, config, skip)) == texts[skip:]
    assert list(read_texts(backbone, TextConfig(documents=10, context=12, seed=100))) != texts


def test_what_is_known_is_read_and_not_computed_again(backbone, tmp_path, monkeypatch):
    first = second_moments(backbone, [1], given(tmp_path), TEXTS)
    again = second_moments(backbone, [1], given(tmp_path), broken_off(TEXTS, 0))
    assert torch.equal(first[1][0], again[1][0])
    more = second_moments(backbone, [1, 2], given(tmp_path), TEXTS)
    assert torch.equal(first[1][0], more[1][0])
    monkeypatch.setattr(mom2_module, "read_texts", lambda *_: broken_off(TEXTS, 0))
    with pytest.raises(OSError, match="connection lost"):  # another text is another moment
        second_moments(backbone, [1], given(tmp_path, seed=1))


def test_backbones_do_not_share_moments(tiny_model, tiny_tokenizer, tmp_path):
    for seed in (0, 1):
        second_moments(Backbone(tiny_model("gpt2", seed=seed), tiny_tokenizer), [1], given(tmp_path), TEXTS)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The same texts as lines, as JSON lines and as a table."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = [text.strip() for text in TEXTS if text]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    lines = [json.dumps({"body": text, "id": i}) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    datasets.Dataset.from_dict({"body": texts}).to_parquet(tmp_path / "a.parquet")
    return texts


@pytest.mark.parametrize(("name", "column"), [("a.txt", "text"), ("a.jsonl", "body"), ("a.parquet", "body")])
def test_local_files_are_read(backbone, sources, tmp_path, name, column):
    config = TextConfig(source=str(tmp_path / name), column=column)
    assert list(read_texts(backbone, config)) == sources
    assert list(read_texts(backbone, config, 4)) == sources[4:]
    some = list(read_texts(backbone, TextConfig(source=str(tmp_path / name), column=column, documents=3)))
    assert len(some) == 3
    assert set(some) < set(sources)


def test_sources_that_cannot_be_read_are_refused(backbone, sources, tmp_path):
    with pytest.raises(ValueError, match=r"`column` must be one of body, id in .*but got 'text'"):
        list(read_texts(backbone, TextConfig(source=str(tmp_path / "a.jsonl"))))
    (tmp_path / "a.pdf").touch()
    with pytest.raises(ValueError, match=r"`source` must end in one of \.txt, \.json, \.jsonl, \.parquet"):
        list(read_texts(backbone, TextConfig(source=str(tmp_path / "a.pdf"))))
    with pytest.raises(ValueError, match=r"`source` must be a data set or a file of text, but got '.*nowhere'"):
        list(read_texts(backbone, TextConfig(source=str(tmp_path / "nowhere"))))


def test_solving_is_the_inverse_of_the_lifted_moment():
    draw = torch.Generator().manual_seed(0)
    half, keys = torch.randn(9, 6, generator=draw).double(), torch.randn(9, 2, generator=draw).double()
    moment, ridge = half @ half.T, 1e-2  # rank 6 of 9: the ridge is needed
    lifted = moment + ridge * moment.trace() / 9 * torch.eye(9)
    torch.testing.assert_close(FactoredMoment.of(moment, 6, ridge).solve(keys), torch.linalg.inv(lifted) @ keys)
    with pytest.raises(ValueError, match="must be positive definite, but with `ridge` 0 that of 6 inputs of width 9"):
        FactoredMoment.of(moment, 6, 0)


def test_factors_are_of_the_moments(backbone, tmp_path):
    config = Mom2Config(text=TextConfig(documents=8, context=16), ridge=0.1, folder=str(tmp_path))
    ((moment, tokens),) = second_moments(backbone, [1], config).values()
    found = factored_moments(backbone, [1], config)[1]
    lifted = moment.double() + 0.1 * moment.double().diagonal().mean() * torch.eye(len(moment))
    torch.testing.assert_close(found.factor @ found.factor.T, lifted)
    assert (found.tokens, found.ridge) == (tokens, 0.1)


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEGA_PL_CACHE", str(tmp_path))
    assert Mom2Config().place == tmp_path / "moments"
    assert Mom2Config(folder="here").place.name == "here"


@pytest.mark.parametrize(("settings", "name"), [({"documents": 0}, "documents"), ({"context": 1}, "context")])
def test_text_settings_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        TextConfig(**settings)


def test_a_negative_ridge_is_refused():
    with pytest.raises(ValueError, match="`ridge` must be at least 0, but got -1"):
        Mom2Config(ridge=-1)
