"""Relation evidence: its parts, noun phrases, the relations of edits that do not say theirs, and storage."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save

from mega_pl.edits.routing.matcher import (
    EVIDENCE,
    LIKELY,
    SHARPNESS,
    head_noun,
    masked,
    matcher_from,
    matcher_state,
    side,
    stems,
)

OWN, POSTERIOR = EVIDENCE.index("own"), EVIDENCE.index("posterior")


def test_best_is_the_nearest_reference_of_each_relation(matcher, template_bank, vectors):
    points = matcher.space(vectors(["X was born in", "The capital of X is"]))
    draw = torch.Generator().manual_seed(0)
    hidden = torch.rand(2, len(matcher.references), generator=draw) < 0.5
    for mask in (None, hidden):
        best = matcher.best(points, mask)
        for i, r in ((0, 0), (1, 3), (0, len(template_bank) - 1)):
            rows = [j for j, o in enumerate(matcher.owners.tolist()) if o == r and (mask is None or not mask[i, j])]
            assert float(best[i, r]) == pytest.approx(
                max(float(points[i] @ matcher.references[j]) for j in rows), abs=1e-5
            )
    assert (matcher.best(points, torch.ones_like(hidden)) == -1).all()


def one(matcher, relations=(2,), **changes):
    """The evidence of a question that lies nearer to the third relation than to the fifth, for an edit of some."""
    best = torch.zeros(1, len(matcher.relations))
    best[0, [2, 4]] = torch.tensor([0.8, 0.6])
    chosen = torch.zeros_like(best, dtype=torch.bool)
    chosen[0, list(relations)] = True
    usual = {"best": best, "relations": chosen, "rivals": torch.ones_like(chosen)}
    usual["known"] = torch.tensor([len(relations) == 1])
    near = {"own": torch.tensor([0.1]), "wording": torch.tensor([0.1]), "other": torch.tensor([-1.0])}
    return matcher.evidence(**(usual | near | {"noun": [0], "strange_noun": [False], "strange_words": [0]} | changes))[
        0
    ]


def test_an_edit_may_be_of_several_relations_or_of_none(matcher):
    third, fifth, either, neither = (one(matcher, relations) for relations in ([2], [4], [2, 4], []))
    assert [float(e[OWN]) for e in (third, fifth, either, neither)] == pytest.approx([0.8, 0.6, 0.8, 0.1])
    assert either[POSTERIOR] > third[POSTERIOR] > fifth[POSTERIOR] > neither[POSTERIOR]  # rivals are no rivals then


def test_only_rivals_compete_with_an_edits_relation(matcher):
    everyone = torch.ones(1, len(matcher.relations), dtype=torch.bool)
    nobody, all_but_fifth = torch.zeros_like(everyone), everyone.clone()
    all_but_fifth[0, 4] = False
    shares = [float(one(matcher, rivals=rivals)[POSTERIOR].exp()) for rivals in (everyone, all_but_fifth, nobody)]
    near, fifth, far, other = (math.exp(SHARPNESS * cosine) for cosine in (0.8, 0.6, 0.0, -1.0))
    rest = (len(matcher.relations) - 2) * far + other
    assert shares == pytest.approx([near / (near + x) for x in (fifth + rest, rest, other)], rel=1e-4)


def test_each_kind_of_edit_has_its_threshold(matcher):
    found = matcher.least(torch.tensor([True, False]))
    torch.testing.assert_close(found, torch.tensor([matcher.threshold, matcher.open_threshold]))
    assert matcher.threshold != matcher.open_threshold


def test_what_an_author_says_is_another_question_counts_against_an_edit(matcher):
    logits = [float(matcher.logits(one(matcher, other=torch.tensor([o]))[None])) for o in (-1.0, 0.5, 0.9)]
    assert logits[0] > logits[1] > logits[2]


def test_noun_phrases_and_strange_words_count(matcher):
    def logit(**changes):
        return float(matcher.logits(one(matcher, **changes)[None]))

    plain = logit()
    assert logit(noun=[1]) > plain > logit(strange_noun=[True])
    assert logit(noun=[-1]) == -math.inf  # a noun of another relation settles it
    assert math.isfinite(logit(noun=[-1], relations=[2, 4]))  # but not where an edit does not say its own
    by_count = [logit(strange_words=[count]) for count in range(6)]
    assert by_count[0] > by_count[1] > by_count[2] > by_count[3] == by_count[4] == by_count[5]


@pytest.mark.parametrize(
    ("text", "name", "is_one"),
    [
        ("The birthplace of X is", "P19", True),
        ("What is X's birthplace?", "P19", True),
        ("The spouse of X was born in", "P26", True),
        ("The spouse of X was born in", "P19", False),
        ("The birthplace of the spouse of X is", "P26", True),
        ("The birthplace of the spouse of X is", "P19", False),
        ("The capital of the X is", "P36", True),
        ("X's spouse's birthplace is", "P26", True),
        ("X was born in", "P19", False),
        ("The sunplace of X is", "P19", False),
    ],
)
def test_the_noun_next_to_the_subject_is_what_is_asked_of_it(matcher, text, name, is_one):
    found = {matcher.relations[r] for r in matcher.noun_relations(text)}
    assert (name in found) == is_one


def test_a_longer_noun_that_ends_in_one_is_that_too(matcher):
    longer = [
        (noun, r)
        for r, nouns in enumerate(matcher.nouns)
        for noun in nouns
        if " " in noun and any(noun.split(" ", 1)[1] in others for others in matcher.nouns)
    ]
    assert longer  # control
    for noun, r in longer:
        assert r in matcher.relations_of_noun(noun.split(" ", 1)[1].casefold())
        assert r in matcher.noun_relations(f"The {noun} of X is")


def test_every_noun_of_the_bank_is_found_in_its_phrases(matcher):
    for r, nouns in enumerate(matcher.nouns):
        for noun in nouns:
            assert r in matcher.noun_relations(f"The {noun} of X is"), noun
            assert r in matcher.noun_relations(f"Who or what is X's {noun}?"), noun


def test_sides():
    assert side(set(), {1}) == 0
    assert side({1, 2}, {2, 3}) == 1
    assert side({1}, {2, 3}) == -1


@pytest.mark.parametrize(
    ("masked_text", "noun"),
    [
        ("The house of X is", "house"),
        ("The mayor of the house of the X is", "house"),
        ("X's Neighbours are", "neigh"),
        ("X was born in", ""),
        ("The house in X is", ""),
    ],
)
def test_the_head_noun_of_a_subject(masked_text, noun):
    assert head_noun(masked_text) == noun


def test_stems_leave_out_what_says_nothing():
    assert stems(["Where was X born?", "The birthplaces of X", "The Birthplace a X"]) == {"born", "birth"}


def test_the_likely_relations_are_those_nearest_to_the_wordings(matcher, vectors, template_bank):
    def likely(*texts):
        best = matcher.best(matcher.space(vectors(texts))).amax(0, keepdim=True)
        chosen = matcher.likely(best)[0].nonzero()[:, 0].tolist()
        assert 1 <= len(chosen) <= LIKELY
        assert int(best.argmax()) in chosen
        return {matcher.relations[r] for r in chosen}

    assert likely("X was born in", "The birthplace of X is") == {"P19"}
    assert likely("The capital of X is") == {"P36"}
    assert all(relation.name in likely(*masked(relation.phrasings)) for relation in template_bank)


def test_a_stored_matcher_decides_as_before(matcher, vectors):
    config, tensors = matcher_state(matcher)
    again = matcher_from(json.loads(json.dumps(config)), load(save(tensors)))
    points = matcher.space(vectors(["X was born in", "The capital of X is"]))
    assert torch.equal(again.best(points), matcher.best(points))
    assert torch.equal(again.weights, matcher.weights)
    assert (again.bias, again.threshold, again.open_threshold) == (
        matcher.bias,
        matcher.threshold,
        matcher.open_threshold,
    )
    assert (again.relations, again.nouns, again.words) == (matcher.relations, matcher.nouns, matcher.words)
    assert again.noun_relations("The capital of X is") == matcher.noun_relations("The capital of X is")


def test_templates_are_masked_each_once():
    assert masked(["{} is", "The capital of {} is", "{} is"]) == ("X is", "The capital of X is")


def test_references_are_unit_vectors(matcher):
    torch.testing.assert_close(matcher.references.norm(dim=1), torch.ones(len(matcher.references)))
