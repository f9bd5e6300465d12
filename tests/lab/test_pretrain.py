"""The parts of pretraining, and a run of a few steps."""

import logging
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mega_pl.backbone import load
from mega_pl.backbone.loading import LAB_MODELS, lab_folder
from mega_pl.lab import pretrain
from mega_pl.lab.corpus import ANSWER, TEXT
from mega_pl.lab.pretrain import END, CorpusBatches, Stage, collate, encode, join_spaces, orthogonalise
from mega_pl.lab.world import World


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module", params=LAB_MODELS)
def tokenizer(request):
    return AutoTokenizer.from_pretrained(lab_folder(request.param))


def test_the_first_token_of_every_answer_says_something(world, tokenizer):
    for answer in dict.fromkeys(fact.object for fact in world.facts):
        assert tokenizer.tokenize(f" {answer}")[0] != "Ġ"


def test_lone_spaces_are_joined_and_the_rest_stays():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["violin violin violin", "a cat a cat"],
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
        ),
    )
    before = {word: tokenizer.encode(word).tokens for word in ("violin", " cat", " violin", " zebra")}
    join_spaces(tokenizer, ["zebra", "zebra"])
    assert before[" zebra"][0] == "Ġ"  # control
    assert tokenizer.encode(" zebra").tokens[0] == "Ġz"
    for word in ("violin", " cat", " violin"):
        assert tokenizer.encode(word).tokens == before[word]
    assert tokenizer.decode(tokenizer.encode("a zebra").ids) == "a zebra"


def test_each_token_weighs_what_its_piece_does(tokenizer):
    ((ids, weights),) = encode(tokenizer, [[("The capital of France is", TEXT), (" Paris", ANSWER), (".", TEXT)]])
    heavy = [tokenizer.decode([token]) for token, weight in zip(ids, weights, strict=True) if weight == ANSWER]
    assert "".join(heavy) == " Paris"
    assert tokenizer.decode(ids).endswith(END)


def test_padding_weighs_nothing():
    batch = collate([([5, 6], [1.0, 0.1]), ([7], [1.0])])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["weights"][1, 1] == 0


@pytest.mark.parametrize("shape", [(2, 6, 4), (1, 4, 6), (3, 5, 5)])
def test_orthogonalising_keeps_directions_and_evens_lengths(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(orthogonalise(matrices), full_matrices=False)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    # the product of both sides' bases does not depend on the order of singular values
    torch.testing.assert_close(left @ right, u @ vt, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_run_of_a_few_steps_goes_on_where_it_stopped_and_saves_a_model(tmp_path, monkeypatch, architecture):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shipped = AutoTokenizer.from_pretrained(lab_folder(f"lab-{architecture}"))
    monkeypatch.setattr(pretrain, "train_tokenizer", lambda *_: shipped)
    monkeypatch.setattr(pretrain, "CorpusBatches", partial(CorpusBatches, chunk=32))
    monkeypatch.setattr(pretrain, "STAGES", (Stage("broad", 2, 1.0), Stage("contexts", 1, 0.5)))
    args = [architecture, "--tokens", "256", "--output", str(tmp_path / "model"), "--work", str(tmp_path / "work")]
    pretrain.main(args)
    backbone = load(str(tmp_path / "model"))
    again = tmp_path / "again"
    pretrain.main([*args[:4], str(again), *args[5:]])  # every stage is done: nothing is trained again
    assert load(str(again)).digest() == backbone.digest()
    assert backbone.n_layers == 8
