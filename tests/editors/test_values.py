from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from mega_pl.editors.contexts import Wordings
from mega_pl.editors.rome import at_subject
from mega_pl.editors.values import Objective, ValueConfig, answer_log_probabilities, find_shift
from mega_pl.editors.weights import Projection
from tests.editors.conftest import DARRIEUX, FRANCE

CONTEXTS = ("", "It rains. ", "He works as a teacher. ")
CONFIG = ValueConfig(
    v_num_grad_steps=5, v_lr=0.3, v_weight_decay=0.7, clamp_norm_factor=3.0, kl_factor=0.5, early_stop_loss=0.0
)


def ids_of(backbone, text):
    return torch.tensor([backbone.tokenizer(text)["input_ids"]])


def slow_answer(backbone, prompt, answer):
    """Mean log-probability of the answer's tokens, token by token."""
    ids, chances = ids_of(backbone, f"{prompt} {answer}"), []
    before = ids_of(backbone, prompt).shape[1]
    for i in range(before, ids.shape[1]):
        chances.append(backbone.model(ids[:, :i]).logits[0, -1].float().log_softmax(-1)[ids[0, i]])
    return torch.stack(chances).mean()


def slow_loss(backbone, projection, request, shift, start, config, before=None):
    """ROME's loss, text by text, with the essence asked as the reference does: after ``{subject} is a``."""
    answers = []
    for context in CONTEXTS:
        end = len(context) + len(FRANCE.prompt[: FRANCE.prompt.index("{}")]) + len(request.subject)
        position = ids_of(backbone, (context + request.filled)[:end]).shape[1] - 1
        with projection.shifted(shift, torch.tensor([position])):
            answers.append(slow_answer(backbone, context + request.filled, request.target_new))
    position = ids_of(backbone, request.subject).shape[1] - 1
    with projection.shifted(shift, torch.tensor([position])):
        after = backbone.model(ids_of(backbone, f"{request.subject} is a")).logits[0, position].float().log_softmax(-1)
    before = after.detach() if before is None else before
    divergence = (after.exp() * (after - before)).sum()
    decay = config.v_weight_decay * shift.norm() / start.norm() ** 2
    return config.kl_factor * divergence - torch.stack(answers).mean() + decay, before


@pytest.fixture
def projection(backbone):
    return Projection.of(backbone, 1)


@pytest.fixture
def start(backbone, projection):
    return at_subject(backbone, projection, Wordings.of(FRANCE))[1][0]


def test_answers_of_different_lengths_are_scored_as_one_by_one(backbone):
    pairs = [(FRANCE.filled, "Rome"), (DARRIEUX.filled, "English or Spanish"), ("He", "works")]
    lengths = torch.tensor([len(backbone.answer_ids(*pair)) for pair in pairs])
    encoded = backbone.encode([" ".join(pair) for pair in pairs])
    with torch.no_grad():
        logits = backbone.model(**encoded.inputs, logits_to_keep=int(lengths.max()) + 1).logits
        slow = torch.stack([slow_answer(backbone, *pair) for pair in pairs])
    assert len(set(lengths.tolist())) > 1
    torch.testing.assert_close(answer_log_probabilities(logits, encoded.input_ids, lengths), slow)


def test_the_subject_alone_says_what_it_says_before_more_words(backbone):
    objective = Objective.of(backbone, FRANCE, CONTEXTS)
    with torch.no_grad():
        _, after = objective.log_probabilities(backbone)
        ids, position = ids_of(backbone, "France is a"), ids_of(backbone, "France").shape[1] - 1
        slow = backbone.model(ids).logits[0, position].log_softmax(-1)
    torch.testing.assert_close(after, slow)


def test_the_shift_is_that_of_the_literal_loop(backbone, projection, start):
    """Five evaluations and four steps of Adam on a loss that is computed text by text."""
    shift = torch.zeros_like(start, requires_grad=True)
    adam, before = torch.optim.Adam([shift], lr=CONFIG.v_lr), None
    for _ in range(CONFIG.v_num_grad_steps - 1):
        loss, before = slow_loss(backbone, projection, FRANCE, shift, start, CONFIG, before)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if shift.norm() > CONFIG.clamp_norm_factor * start.norm():
                shift.mul_(CONFIG.clamp_norm_factor * start.norm() / shift.norm())
    found = find_shift(backbone, FRANCE, CONTEXTS, CONFIG, start, projection.shifted)
    torch.testing.assert_close(found, shift.detach(), rtol=1e-3, atol=1e-4)
    assert found.norm() > 0.1


@pytest.mark.parametrize("change", [{"kl_factor": 50.0}, {"v_weight_decay": 50.0}])
def test_every_term_of_the_loss_counts(backbone, projection, start, change):
    usual = find_shift(backbone, FRANCE, CONTEXTS, CONFIG, start, projection.shifted)
    other = find_shift(backbone, FRANCE, CONTEXTS, replace(CONFIG, **change), start, projection.shifted)
    assert (usual - other).norm() > 0.05 * usual.norm()


def test_the_shift_is_no_longer_than_the_clamp(backbone, projection, start):
    config = replace(CONFIG, clamp_norm_factor=0.1, v_lr=5.0)
    found = find_shift(backbone, FRANCE, CONTEXTS, config, start, projection.shifted)
    torch.testing.assert_close(found.norm(), 0.1 * start.norm())


@pytest.mark.parametrize("change", [{"v_num_grad_steps": 1}, {"early_stop_loss": 1e6}])
def test_the_last_evaluation_makes_no_step_and_a_low_loss_ends_the_search(backbone, projection, start, change):
    calls = 0

    @contextmanager
    def counted(shift, positions):
        nonlocal calls
        calls += 1
        with projection.shifted(shift, positions):
            yield

    found = find_shift(backbone, FRANCE, CONTEXTS, replace(CONFIG, **change), start, counted)
    assert torch.equal(found, torch.zeros_like(start))
    assert calls == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_num_grad_steps": 0}, "`v_num_grad_steps` must be at least 1, but got 0"),
        ({"kl_factor": -1.0}, "`kl_factor` must be at least 0, but got -1.0"),
        ({"v_weight_decay": float("nan")}, "`v_weight_decay` must be at least 0, but got nan"),
        ({"v_lr": 0.0}, "`v_lr` must be above 0, but got 0.0"),
        ({"clamp_norm_factor": -1.0}, "`clamp_norm_factor` must be above 0, but got -1.0"),
        ({"context_template_length_params": ((1, 3),)}, "`context_template_length_params` must name groups"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ValueConfig(**change)
