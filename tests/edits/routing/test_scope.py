"""Scopes: the evidence of hand-made ones, what settles it, and storage."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

from mega_pl.edits.routing.matcher import EVIDENCE, SHARPNESS, STRANGE, RelationMatcher, head_noun, stems
from mega_pl.edits.routing.question import MASK
from mega_pl.edits.routing.scope import SAME, Scopes
from mega_pl.functional.discriminant import Discriminant
from tests.edits.routing.conftest import BORN, CAPITAL, PANCAKE, REQUESTS, request

BIRTHPLACE, SPOUSE, CAPITAL_CITY = range(3)
NOUNS = (("birthplace",), ("spouse", "wife"), ("capital",))
TYPES = ((("person",), "city"), (("person",), "person"), (("country",), "city"))
TABLE = [
    f"{MASK} was born in",
    f"The cradle of {MASK} stood in",
    f"The mayor of the birthplace of {MASK} is",
    f"The job of {MASK} is",
    f"The favourite pancake of {MASK} is",
    f"{MASK} bakes",
]
TEXTS = [
    f"Where was {MASK} born?",
    f"The birthplace of {MASK} is",
    f"The wife of {MASK} is",
    f"The capital of {MASK} is",
    f"The house of {MASK} is",
    f"Yesterday evening strange clouds slowly covered {MASK}",
    f"{MASK} bakes",
]


def unit(rows, width=4, seed=0):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def scopes():
    """An edit of each kind: of a known relation, with all sorts of questions, and of an unknown one."""
    matcher = RelationMatcher(
        relations=("born", "spouse", "capital"),
        nouns=NOUNS,
        words=(stems(["{} was born in"]), stems(["{} married"]), stems(["The capital of {} is"])),
        space=Discriminant(torch.zeros(4), torch.eye(4)),
        references=unit(7, seed=1),
        owners=torch.tensor([0, 0, 0, 1, 1, 2, 2]),
        weights=torch.ones(len(EVIDENCE)),
        bias=0.0,
        threshold=0.0,
        open_threshold=0.0,
    )
    table = Scopes(matcher, TYPES, tuple(TABLE), unit(len(TABLE), seed=2), ())
    return replace(
        table,
        edits=(
            table.scope({BIRTHPLACE}, True, [0, 1], [2], [3]),
            table.scope([SPOUSE, CAPITAL_CITY], False, [4], [], [5]),
            table.scope({CAPITAL_CITY}, True, [4, 5], [], []),
        ),
    )


def named(text):
    """The relations in whose noun phrase the subject of a text stands."""
    return {r for r, nouns in enumerate(NOUNS) if any(f"{noun} of {MASK}" in text for noun in nouns)}


def twin(scopes, point, text, scope, hidden, unseen, others):
    """The evidence of one pair and whether it goes through, from the definitions."""
    cosines = [-1.0 if gone else float(point @ q) for q, gone in zip(scopes.questions, unseen, strict=True)]
    best = [-1.0] * 3
    for reference, owner, gone in zip(
        scopes.matcher.references, scopes.matcher.owners.tolist(), hidden.tolist(), strict=True
    ):
        best[owner] = max(best[owner], -1.0 if gone else float(point @ reference))
    own = max(cosines[i] for i in scope.own)
    implied = max(
        (cosines[i] for i in scope.implied if not named(TABLE[i]) or named(TABLE[i]) & named(text)), default=-1.0
    )
    other = max((cosines[i] for i in scope.others if others), default=-1.0)
    direct = max(own, *(best[r] for r in scope.relations))
    nearest = max(direct, implied)
    rest = [best[r] for r in scope.rivals - scope.relations] + [other]
    posterior = SHARPNESS * nearest - math.log(sum(math.exp(SHARPNESS * cosine) for cosine in [nearest, *rest]))
    found = named(text) & scope.rivals
    noun = 0 if not found else 1 if found & scope.nouns else -1
    head = float(head_noun(text) != "" and head_noun(text) not in scope.words)
    if noun < 0:
        head = math.inf if scope.known else 1.0
    if other > SAME and other > max(own, implied):
        head = math.inf
    strange = min(STRANGE, len(stems([text]) - scope.words))
    evidence = [nearest, cosines[scope.own[0]], posterior, float(max(noun, 0)), -head, -float(strange)]
    return evidence, noun > 0 or implied > direct or not scope.known


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("held_out", [True, False])
def test_the_evidence_is_that_of_a_loop_over_the_pairs(scopes, others, held_out):
    points = unit(len(TEXTS), seed=3)
    points[-1] = scopes.questions[5]  # what the second edit's author says is another question
    pairs = [(text, edit) for text in range(len(TEXTS)) for edit in range(3)]
    draw = torch.Generator().manual_seed(4)
    hidden = torch.rand(len(TEXTS), 7, generator=draw) < 0.3
    unseen = torch.rand(len(TEXTS), len(TABLE), generator=draw) < 0.3
    unseen[-1] = False
    masks = {"hidden": hidden, "unseen": unseen} if held_out else {}
    evidence, spared = scopes.evidence(points, TEXTS, pairs, others=others, **masks)
    if not held_out:
        hidden, unseen = torch.zeros_like(hidden), torch.zeros_like(unseen)
    wanted = [
        twin(scopes, points[text], TEXTS[text], scopes.edits[edit], hidden[text], unseen[text], others)
        for text, edit in pairs
    ]
    torch.testing.assert_close(evidence, torch.tensor([row for row, _ in wanted]), atol=1e-5, rtol=1e-5)
    assert spared.tolist() == [goes for _, goes in wanted]
    vetoed = dict(zip(pairs, evidence.isinf().any(1).tolist(), strict=True))
    assert vetoed[2, 0]  # controls: a noun of another relation,
    assert vetoed[6, 1] == others  # and another question


def test_a_question_goes_on_from_the_object_by_a_noun_phrase_or_an_implication(scopes):
    born = replace(scopes.edits[0], own=(0,), implied=(1,))
    mute = replace(scopes, matcher=replace(scopes.matcher, references=-scopes.questions[1].expand(7, 4)), edits=(born,))
    texts = [TEXTS[1], TEXTS[0], TABLE[1], TABLE[0]]
    points = torch.stack([unit(1, seed=3)[0], unit(1, seed=3)[0], scopes.questions[1], scopes.questions[0]])
    assert mute.evidence(points, texts, [(0, 0), (2, 0), (3, 0)])[1].tolist() == [True, True, False]
    without = replace(mute, edits=(replace(born, implied=()),))
    assert without.evidence(points, texts, [(i, 0) for i in range(4)])[1].tolist() == [True, False, False, False]


def test_an_implication_through_a_noun_phrase_is_no_question_without_it(scopes):
    """The mayor of the birthplace of somebody is not their mayor, whatever the vectors say."""
    point, place = scopes.questions[2:3], EVIDENCE.index("own")
    for text, near in ((TABLE[2], True), (f"The mayor of {MASK} is", False)):
        evidence, spared = scopes.evidence(point, [text], [(0, 0)])
        assert (float(evidence[0, place]) > SAME, spared.item()) == (near, near)


def test_nothing_speaks_against_an_edit_that_does_not_say_its_relation(scopes):
    assert scopes.evidence(unit(1), [TEXTS[0]], [(0, 1), (0, 0)])[1].tolist() == [True, False]


def test_what_the_author_says_is_another_question_is_settled(scopes):
    contrast, nearly = scopes.questions[3], F.normalize(scopes.questions[3] + 0.2 * unit(1, seed=9)[0], dim=0)
    assert 0.9 < float(contrast @ nearly) < SAME
    points, texts = torch.stack([contrast, nearly, contrast]), [TABLE[3]] * 3
    place = EVIDENCE.index("strange noun")
    evidence, _ = scopes.evidence(points, texts, [(0, 0), (1, 0), (2, 2)])
    assert evidence[:, place].isinf().tolist() == [True, False, False]  # the third edit says nothing of the kind
    assert scopes.matcher.logits(evidence).isneginf().tolist() == [True, False, False]
    assert not scopes.evidence(points, texts, [(0, 0)], others=False)[0].isinf().any()
    asks = replace(scopes, edits=(replace(scopes.edits[0], own=(0, 3)),))  # its own question as well
    assert not asks.evidence(points, texts, [(0, 0)])[0].isinf().any()


def test_a_scope_knows_its_nouns_rivals_and_words(scopes):
    born, pancake, _ = scopes.edits
    assert born.nouns == {BIRTHPLACE}
    assert born.rivals == {BIRTHPLACE, SPOUSE}  # what else is asked of a person
    assert pancake.rivals == {BIRTHPLACE, SPOUSE, CAPITAL_CITY}
    assert born.words == stems([*TABLE[:3], "{} was born in"])
    assert pancake.words >= stems([TABLE[4]])
    assert not pancake.words & stems([TABLE[5]])  # a contrast's words are not its own
    assert scopes.subject_types == {"person", "country"}
    assert scopes.select([0, *range(3, len(scopes.edits))]).subject_types == {"person"}


class Letters:
    """Vectors that count letters."""

    def __init__(self):
        self.texts = []

    def __call__(self, questions):
        self.texts += questions
        return torch.tensor([[text.count(letter) + 0.5 for letter in "aeio"] for text in questions])


def test_edits_come_and_go_and_questions_are_read_once(scopes):
    vectors, empty = Letters(), replace(scopes, texts=(), questions=scopes.questions[:0], edits=())
    both = empty.add(vectors, [BORN, PANCAKE])
    assert sorted(vectors.texts) == list(both.texts)
    assert both.texts == (
        f"The favourite pancake of {MASK} is",
        f"The oldest pancake of {MASK} is",
        f"{MASK} has an oldest pancake, which is",
        f"{MASK} loves a pancake called",
        f"{MASK} was born in",
    )
    torch.testing.assert_close(both.questions, both.matcher.space(Letters()(both.texts)))
    assert [(s.own, s.implied, s.others) for s in both.edits] == [((4,), (), ()), ((0, 3), (), (1, 2))]
    twin_edit = request("again", "{} was born in", "Ann", implications=(("A river of {} is",),))
    more = both.add(vectors, [twin_edit])
    assert vectors.texts.count(f"{MASK} was born in") == 1
    assert more.texts == (f"A river of {MASK} is", *both.texts)
    assert [(s.own, s.implied) for s in more.edits] == [((5,), ()), ((1, 4), ()), ((5,), (0,))]
    assert torch.equal(more.questions[1:], both.questions)
    assert both.add(vectors, [BORN]).texts == both.texts  # nothing new to read
    assert len(both.edits) == 2  # the earlier ones are as they were


def test_the_table_depends_on_the_edits_and_not_on_how_they_came(scopes):
    empty = replace(scopes, texts=(), questions=scopes.questions[:0], edits=())
    both = empty.add(Letters(), [BORN, PANCAKE])
    parts = [empty.add(Letters(), [edit]) for edit in (BORN, PANCAKE)]
    for way in (parts[0].merge(parts[1]), parts[0].add(Letters(), [PANCAKE]), parts[1].merge(parts[0]).select([1, 0])):
        assert way.texts == both.texts
        assert list(map(vars, way.edits)) == list(map(vars, both.edits))
        assert torch.equal(way.questions, both.questions)
    assert both.select([0]).texts == parts[0].texts  # nothing stays of an edit that is gone
    assert both.select([]).texts == ()


def test_scopes_of_another_space_are_not_merged(scopes):
    other = replace(scopes, matcher=replace(scopes.matcher, references=scopes.matcher.references.flip(0)))
    with pytest.raises(ValueError, match="routers must compare questions in one space to be merged"):
        scopes.merge(other)
    looser = replace(scopes, matcher=replace(scopes.matcher, threshold=-1.0))
    assert len(scopes.merge(looser).edits) == 6  # control: another threshold is no other space


def test_an_edit_is_known_by_the_name_of_its_relation(scopes):
    empty = replace(scopes, texts=(), questions=scopes.questions[:0], edits=())
    told = empty.add(Letters(), [replace(BORN, relation="spouse"), replace(CAPITAL, relation="P36")])
    assert [s.known for s in told.edits] == [True, False]
    assert told.edits[0].relations == {SPOUSE}
    assert CAPITAL_CITY in told.edits[1].nouns  # it stands in its prompt


def test_stored_scopes_are_the_same(router):
    config, tensors = router.scopes.state()
    again = Scopes.from_state(router.scopes.matcher, json.loads(json.dumps(config)), load(save(tensors)))
    assert (again.types, again.texts) == (router.scopes.types, router.scopes.texts)
    assert torch.equal(again.questions, router.scopes.questions)
    for one, other in zip(again.edits, router.scopes.edits, strict=True):
        assert vars(one) == vars(other)
    assert len(again.edits) == len(REQUESTS)
