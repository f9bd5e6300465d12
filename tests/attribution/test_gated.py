from collections import Counter

import pytest
import torch

from mega_pl.attribution import SIGN_CLASSES, class_frequencies, compare_classes, gating, sign_classes
from mega_pl.backbone import Backbone, Site, steer
from mega_pl.backbone.observation import observe_parts

TEXTS = [
    "The capital of France is Paris, and 2 + 2 = 4.",
    "Rome is a city in Italy.",
    "The official language of the country is English or Spanish.",
    "He was born",
    "He was born in the city of London and works as a teacher.",
]
NEURONS = [(2, 5), (0, 63), (2, 1)]


@pytest.fixture
def backbone(tiny_model, tiny_tokenizer):
    return Backbone(tiny_model("llama").double(), tiny_tokenizer)


def slow_rows(backbone):
    """For each text and token: its ids up to there, gate, input and activation of each neuron."""
    for text in TEXTS:
        ids = backbone.tokenizer(text)["input_ids"]
        for length in range(1, len(ids) + 1):
            encoded = backbone.encode([backbone.tokenizer.decode(ids[:length])])
            if encoded.input_ids[0].tolist() != ids[:length]:
                continue
            parts = observe_parts(backbone, encoded)
            assert parts.input is not None
            for n, (layer, neuron) in enumerate(NEURONS):
                yield ids[:length], n, *(float(v[0, layer, neuron]) for v in (parts.gate, parts.input, parts.neurons))


def test_classes_are_the_signs(backbone):
    seen = gating(backbone, TEXTS, NEURONS)
    for row in range(len(TEXTS)):
        for n in range(len(NEURONS)):
            gate, multiplied = float(seen.gate[row, n]), float(seen.input[row, n])
            name = f"gate{'+' if gate > 0 else '-'} input{'+' if multiplied > 0 else '-'}"
            assert SIGN_CLASSES[seen.classes[row, n]] == name
            assert (seen.activation[row, n] > 0) == ((gate > 0) == (multiplied > 0))
    torch.testing.assert_close(seen.activation, torch.nn.functional.silu(seen.gate) * seen.input)
    right = gating(backbone, TEXTS, NEURONS, padding_side="right")
    torch.testing.assert_close(seen.gate, right.gate)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_frequencies_equal_a_count_token_by_token(backbone, batch_size):
    found = class_frequencies(backbone, iter(TEXTS), NEURONS, batch_size=batch_size, examples=2, context=3)
    counted: Counter[tuple[int, int]] = Counter()
    activations: dict[tuple[int, int], list[float]] = {}
    contexts = {}
    for ids, n, gate, multiplied, activation in slow_rows(backbone):
        code = 2 * (gate < 0) + (multiplied < 0)
        counted[n, code] += 1
        activations.setdefault((n, code), []).append(activation)
        contexts[round(activation, 9)] = backbone.tokenizer.decode(ids[-4:])
    assert found.counts.tolist() == [[counted[n, code] for code in range(4)] for n in range(len(NEURONS))]
    torch.testing.assert_close(found.shares.sum(1), torch.ones(len(NEURONS)))
    for (n, code), values in activations.items():
        largest = sorted(values, key=abs, reverse=True)[:2]
        shown = found.examples[n][code]
        assert [example.activation for example in shown] == pytest.approx(largest, rel=1e-5)
        for example, value in zip(shown, largest, strict=True):
            assert example.context == contexts[round(value, 9)]
            assert example.context.endswith(example.token)
    for n in range(len(NEURONS)):
        for code in range(4):
            assert len(found.examples[n][code]) == min(2, counted[n, code])


def test_an_edit_changes_classes_downstream_only(backbone):
    before = gating(backbone, TEXTS, NEURONS)
    with steer(backbone.model, {Site(2, "resid_mid"): lambda values: -values}, backbone.encode(TEXTS).last):
        change = compare_classes(before, gating(backbone, TEXTS, NEURONS))
    assert change.transitions.sum((1, 2)).tolist() == [len(TEXTS)] * len(NEURONS)
    moved = change.transitions - torch.diag_embed(change.transitions.diagonal(dim1=1, dim2=2))
    assert moved.sum((1, 2)).tolist() == change.changed.sum(0).tolist()
    assert not change.changed[:, 1].any()
    assert not change.activation[:, 1].any()
    assert change.changed[:, [0, 2]].all()  # what the neurons read is turned round, and with it both signs
    for n in (0, 2):
        for code in range(4):
            assert change.transitions[n, code, 3 - code] == (before.classes[:, n] == code).sum()


def test_nothing_changes_without_an_edit(backbone):
    seen = gating(backbone, TEXTS, NEURONS)
    change = compare_classes(seen, seen)
    assert not change.changed.any()
    assert not change.activation.any()


def test_zero_counts_as_positive():
    zero = torch.tensor([0.0, -0.0])
    assert sign_classes(zero, zero).tolist() == [0, 0]


@pytest.mark.parametrize("neurons", [[], [(4, 0)], [(0, 64)], [(0, -1)]])
def test_neurons_that_do_not_exist_are_refused(backbone, neurons):
    with pytest.raises(ValueError, match=r"layers in \[0, 3\] and neurons in \[0, 63\], but got"):
        gating(backbone, TEXTS, neurons)


def test_bad_requests_are_refused(backbone, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="`texts` must hold at least one text, but got none"):
        class_frequencies(backbone, [], NEURONS)
    with pytest.raises(ValueError, match="`batch_size` must be above 0"):
        class_frequencies(backbone, TEXTS, NEURONS, batch_size=0)
    with pytest.raises(ValueError, match=r"same prompts and neurons, but got \(5, 3\) and \(2, 3\)"):
        compare_classes(gating(backbone, TEXTS, NEURONS), gating(backbone, TEXTS[:2], NEURONS))
    with pytest.raises(ValueError, match="must have a gate, but those of 'gpt2' have none"):
        gating(Backbone(tiny_model("gpt2"), tiny_tokenizer), TEXTS, NEURONS)
