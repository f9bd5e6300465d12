"""The measures of ROME, EasyEdit, RippleEdits and of free generation against slow twins, from one table."""

import inspect
import json
import math
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import Metric, MetricCollection

from mega_pl.functional.text import Tfidf, generation_entropy
from mega_pl.metrics import easyedit_metrics, generation_metrics, rippleedits_metrics, rome_metrics, sake_metrics
from mega_pl.metrics.easyedit import EASYEDIT_METRICS, token_agreement
from mega_pl.metrics.fluency import Fluency, ReferenceScore
from mega_pl.metrics.functional import edit_means
from mega_pl.metrics.generation import GENERATION_METRICS, FirstSentence, Relapse, Start, at_start, comes_back
from mega_pl.metrics.means import MacroMean
from mega_pl.metrics.rippleedits import RIPPLEEDITS_METRICS, AxisScore, names_all, verdict
from mega_pl.metrics.rome import EXACT, LIKELIHOODS, SCORE_PARTS, EditScore, RewriteExact, lead, preferred

PLACES = ["Rome", "Paris", "New York", "York", "Oslo"]
SNIPPETS = ["Rome is the capital of Italy", "Paris is old", "York is a city in England", "New York is large"]


def owners(rng, edits=8):
    """Edit ids, each with one to five tests together."""
    return [f"{edit}" for edit in range(edits) for _ in range(rng.randint(1, 5))]


def likelihoods(seed):
    rng = random.Random(seed)
    edits = owners(rng)
    return torch.tensor([[5 * rng.random() for _ in edits] for _ in range(2)], dtype=torch.float64).unbind(), edits


def flags(seed):
    rng = random.Random(seed)
    edits = owners(rng)
    return (torch.tensor([rng.random() < 0.6 for _ in edits]),), edits


def tokens(seed):
    rng = random.Random(seed)
    edits = owners(rng)
    lengths = [rng.randint(1, 4) for _ in edits]
    return tuple([tuple(rng.randrange(3) for _ in range(length)) for length in lengths] for _ in range(2)), edits


def texts(seed):
    rng = random.Random(seed)
    edits = owners(rng)
    return ([" ".join(rng.choices(["a", "b", "Rome", "is"], k=rng.randint(0, 12))) for _ in edits],), edits


def references(seed):
    rng = random.Random(seed)
    edits = [f"{edit}" for edit in range(8)]
    return tuple([" ".join(rng.choices(SNIPPETS, k=2)) for _ in edits] for _ in range(2)), edits


def written(seed):
    rng = random.Random(seed)
    edits = owners(rng, edits=20)
    said = [" " + "".join(rng.choices([*PLACES, ". ", " and ", "\n", "s"], k=6)) for _ in edits]
    return (said, [rng.sample(PLACES, 2) for _ in edits]), edits


def relapses(seed):
    (said, names), edits = written(seed)
    rng = random.Random(seed)
    said = [f"{text} {rng.choice(PLACES)}" for text in said]
    return (said, names, [[rng.choice([place for place in PLACES if place not in own])] for own in names]), edits


def macro(values, edits):
    """Mean over edits of the mean over each one's tests."""
    return fmean(fmean(v for v, e in zip(values, edits, strict=True) if e == edit) for edit in dict.fromkeys(edits))


def slow_share(outcomes, edits):
    return macro(outcomes.tolist(), edits)


def slow_score(new, true, edits):
    return macro([n < t for n, t in zip(new.tolist(), true.tolist(), strict=True)], edits)


def slow_magnitude(new, true, edits):
    return macro([math.exp(-n) - math.exp(-t) for n, t in zip(new.tolist(), true.tolist(), strict=True)], edits)


def slow_agreement(predicted, expected, edits):
    return macro([fmean(p[i] == e[i] for i in range(len(p))) for p, e in zip(predicted, expected, strict=True)], edits)


def slow_cosine(said, wanted, edits):
    tfidf = Tfidf.fit(SNIPPETS)
    return fmean(tfidf.cosine(a, b) for a, b in zip(said, wanted, strict=True))


def whole(name):
    return rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])"


def slow_start(said, names, edits):
    return fmean(any(re.match(r"\s*" + whole(n), t) for n in own) for t, own in zip(said, names, strict=True))


def slow_sentence_length(text):
    """Characters up to the end of the first sentence, one by one."""
    started = False
    for i, character in enumerate(text):
        if character == "\n" and started:
            return i
        if character == "." and (i + 1 == len(text) or text[i + 1].isspace()):
            return i + 1
        started = started or not character.isspace()
    return len(text)


def slow_mention(text, names):
    """Where the first mention in the first sentence ends, of two at one place the longer one's."""
    found = [(m.start(), -m.end()) for n in names for m in re.finditer(whole(n), text)]
    early = [span for span in found if span[0] < slow_sentence_length(text)]
    return -min(early)[1] if early else None


def slow_sentence(said, names, edits):
    return fmean(slow_mention(text, own) is not None for text, own in zip(said, names, strict=True))


def slow_relapse(said, new, old, edits):
    outcomes = []
    for text, news, (name,) in zip(said, new, old, strict=True):
        end = slow_mention(text, news)
        if end is not None:
            rest = text[end:]
            for n in sorted(news, key=len, reverse=True):
                rest = re.sub(whole(n), "#", rest)
            outcomes.append(re.search(whole(name), rest) is not None)
    return fmean(outcomes)


TABLE: dict[str, tuple[Any, Any, Any]] = {
    **{
        f"rome.{name}": (metric, likelihoods, slow_magnitude if name.endswith("magnitude") else slow_score)
        for name, (kind, metric) in LIKELIHOODS.items()
        if kind != "neighborhood"
    },
    "rome.neighborhood_score": (
        LIKELIHOODS["neighborhood_score"][1], likelihoods, lambda new, true, edits: slow_score(true, new, edits)
    ),
    "rome.neighborhood_magnitude": (
        LIKELIHOODS["neighborhood_magnitude"][1], likelihoods, lambda new, true, edits: slow_magnitude(true, new, edits)
    ),
    **{f"rome.{name}": (metric, flags, slow_share) for name, (_, metric) in EXACT.items()},
    "rome.fluency": (Fluency, texts, lambda said, edits: macro([generation_entropy(t) for t in said], edits)),
    "rome.reference_score": (lambda: ReferenceScore(Tfidf.fit(SNIPPETS)), references, slow_cosine),
    **{f"easyedit.{name}": (metric, tokens, slow_agreement) for name, metric in EASYEDIT_METRICS.items()},
    **{f"rippleedits.{name}": (metric, flags, slow_share) for name, metric in RIPPLEEDITS_METRICS.items()},
    "generation.start": (Start, written, slow_start),
    "generation.sentence": (FirstSentence, written, slow_sentence),
    "generation.relapse": (Relapse, relapses, slow_relapse),
}  # fmt: skip
ROWS = pytest.mark.parametrize(("make", "draw", "slow"), TABLE.values(), ids=TABLE)


def split(columns, edits, size):
    """The tests of `size` edits at a time."""
    names = list(dict.fromkeys(edits))
    for i in range(0, len(names), size):
        rows = [j for j, edit in enumerate(edits) if edit in names[i : i + size]]
        cut = [c[rows] if isinstance(c, torch.Tensor) else [c[j] for j in rows] for c in columns]
        yield cut, [edits[j] for j in rows]


def feed(metric, columns, edits):
    """Update; measures that count tests take no edit ids."""
    metric.update(*columns, *([edits] if "edits" in inspect.signature(type(metric).update).parameters else []))


@ROWS
def test_value_is_the_slow_one_for_any_split(make, draw, slow):
    columns, edits = draw(1)
    expected = slow(*columns, edits)
    assert expected not in (0, 1)
    for size in (1, 3, 20):
        metric = make()
        for part in split(columns, edits, size):
            feed(metric, *part)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-12)
        if isinstance(metric, MacroMean):
            assert metric.n == len(set(edits))


@ROWS
def test_processes_add_up(make, draw, slow):
    """Unequal shares, synchronised and merged, give the value of all of them."""
    shares = [draw(2), draw(3)]
    here, there, alone = make(), make(), make()
    for metric, share in ((here, shares[0]), (there, shares[1]), (alone, shares[0]), (alone, shares[1])):
        feed(metric, *share)
    others = iter([getattr(there, name) for name in there._reductions])
    here.sync(dist_sync_fn=lambda state, group: [state, next(others)], distributed_available=lambda: True)
    synced = {name: getattr(here, name).clone() for name in here._reductions}
    here.unsync()
    here.merge_state(there)
    assert here.compute().item() == pytest.approx(alone.compute().item(), abs=1e-12)
    for name, value in synced.items():
        assert torch.allclose(value.double(), getattr(alone, name).double())


@ROWS
def test_declarations_and_life(make, draw, slow):
    metric = make()
    assert (metric.is_differentiable, metric.full_state_update) == (False, False)
    assert metric.higher_is_better is not isinstance(metric, Relapse)
    assert type(metric).__doc__
    feed(metric, *draw(4))
    value = metric.compute()
    assert value.dtype == torch.float64
    assert pickle.loads(pickle.dumps(metric)).compute() == value
    metric.reset()
    columns, edits = draw(4)
    feed(metric, *next(split(columns, edits, 20)))
    assert metric.compute() == value


@ROWS
def test_nothing_is_nan(make, draw, slow):
    metric = make()
    columns, _ = draw(4)
    feed(metric, [column[:0] for column in columns], [])
    assert math.isnan(metric.compute())


@ROWS
def test_planted_mistakes_are_seen(make, draw, slow):
    """A column shifted by one test, or two that are swapped, gives another value."""
    columns, edits = draw(9)
    expected = slow(*columns, edits)
    mistaken = [[*columns[:i], shift(column), *columns[i + 1 :]] for i, column in enumerate(columns)]
    if draw is likelihoods:
        mistaken.append(list(columns)[::-1])
    if draw is tokens:  # lengths belong to the tests: shift within each answer
        mistaken = [[[ids[1:] + ids[:1] for ids in columns[0]], columns[1]]]
    for wrong in mistaken:
        metric = make()
        feed(metric, wrong, edits)
        assert metric.compute().item() != pytest.approx(expected, abs=1e-9)


def shift(column):
    return column.roll(1) if isinstance(column, torch.Tensor) else [*column[-1:], *column[:-1]]


def test_hand_made_likelihoods():
    # Edit a: o* twice as likely, then a tie; edit b: o ten times as likely.
    new, true = torch.tensor([0.4, 0.2, 0.01]).log().neg(), torch.tensor([0.2, 0.2, 0.1]).log().neg()
    edits = ["a", "a", "b"]
    assert preferred(new, true).tolist() == [True, False, False]
    assert lead(new, true).tolist() == pytest.approx([0.2, 0.0, -0.09])
    expected = {"score": (0.25, 0.5), "magnitude": ((0.1 - 0.09) / 2, (-0.1 + 0.09) / 2)}
    for name, (kind, metric) in LIKELIHOODS.items():
        own = metric()
        own.update(new, true, edits)
        side = kind == "neighborhood"
        assert own.compute().item() == pytest.approx(expected[name.split("_")[1]][side], abs=1e-6), name
    # A tie succeeds nowhere, as a strict inequality has it.
    assert not preferred(true, true).any()


def test_score_is_the_harmonic_mean_of_its_parts():
    metric, values = EditScore(), {}
    for seed, (kind, part) in enumerate(SCORE_PARTS.items()):
        (new, true), edits = likelihoods(seed)
        own = part()
        for share, names in split((new, true), edits, 3):
            metric.update(kind, share[0], share[1], names)
            own.update(share[0], share[1], names)
        values[kind] = own.compute().item()
    assert list(values) == ["rewrite", "paraphrase", "neighborhood"]
    assert metric.compute().item() == pytest.approx(harmonic_mean(list(values.values())))
    assert metric.compute().item() != pytest.approx(fmean(values.values()))

    metric.reset()
    nll = torch.tensor([1.0])
    for kind in SCORE_PARTS:
        metric.update(kind, torch.tensor([0.5]), nll, ["a"])
        assert math.isnan(metric.compute()) is (kind != "neighborhood")
    assert metric.compute() == 0  # the neighbourhood is lost


def test_parts_of_the_score_from_several_processes():
    here, there, alone = EditScore(), EditScore(), EditScore()
    for seed, kind in enumerate(SCORE_PARTS):
        for metric, own in ((here, seed), (there, seed + 9)):
            (new, true), edits = likelihoods(own)
            metric.update(kind, new, true, edits)
            alone.update(kind, new, true, edits)
    here.merge_state(there)
    assert here.compute().item() == pytest.approx(alone.compute().item())


def test_tests_that_are_not_kept_leave_their_edits_out():
    metric = AxisScore()
    passed = torch.tensor([True, False, False, True])
    metric.update(passed, ["a", "a", "b", "c"], torch.tensor([True, True, False, True]))
    assert (metric.compute().item(), metric.n) == (0.75, 2)


@pytest.mark.parametrize(
    ("text", "entities", "named"),
    [
        (" Rome", [["Rome"]], True),
        (" Romeo", [["Rome"]], True),
        (" rome", [["Rome"]], False),
        (" Rome", [["Rome"], ["Paris"]], False),
        (" Paris, Rome", [["Rome", "Roma"], ["Paris"]], True),
        (" Roma", [["Rome", "Roma"]], True),
        (" A B", [["A"]], False),
        (" A B", [["A", "B "]], False),
        (" 7 times", [["7"]], True),
    ],
)
def test_every_entity_must_be_named(text, entities, named):
    assert names_all(text, entities) is named


def test_a_test_needs_any_query_or_all():
    assert verdict([True, False], every=False)
    assert not verdict([True, False], every=True)
    assert verdict([True, True], every=True)
    assert not verdict([False, False], every=False)


@pytest.mark.parametrize(
    ("text", "start", "sentence", "back"),
    [
        (" Rome, and once Paris", True, True, True),
        (" Paris. Rome", False, False, False),
        (" in Rome. Paris", False, True, True),
        (" Rome and New Paris", True, True, False),
        (" Rome\nParis", True, True, True),
        (" Romeo of Paris", False, False, False),
        (" St. Rome. Paris", True, True, True),  # an abbreviation within the name ends no sentence before it
    ],
)
def test_hand_made_continuations(text, start, sentence, back):
    new = [["Rome", "New Paris", "St. Rome"]]
    assert at_start([text], new).tolist() == [start]
    hits, kept = comes_back([text], new, [["Paris"]])
    assert (hits.tolist(), kept.tolist()) == ([back], [sentence])


def test_hand_made_agreement():
    assert token_agreement([(1, 2, 3), (4,)], [(1, 2, 9), (4,)]).tolist() == pytest.approx([2 / 3, 1])
    assert edit_means(token_agreement([(1,), (2, 2)], [(1,), (1, 2)]), ["a", "a"])[0].tolist() == [0.75]


COLLECTIONS: dict[str, Callable[[], MetricCollection]] = {
    "sake": sake_metrics,
    "rome": lambda: rome_metrics(Tfidf.fit(SNIPPETS)),
    "easyedit": easyedit_metrics,
    "rippleedits": rippleedits_metrics,
    "generation": generation_metrics,
}


def test_protocols_share_no_column():
    names = [name for make in COLLECTIONS.values() for name in make().keys()]  # noqa: SIM118
    assert len(names) == len(set(names))
    assert set(generation_metrics().keys()) == set(GENERATION_METRICS)
    assert "reference_score" not in rome_metrics()


@pytest.mark.parametrize("make", COLLECTIONS.values(), ids=COLLECTIONS)
def test_collections_keep_measures_of_one_class_apart(make):
    assert not make()._enable_compute_groups


def take_part(rank, folder):
    """Be one of two processes: feed a share and return what the synchronised metrics say."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        values = {}
        for name, (make, draw, _) in TABLE.items():
            metric = make()
            feed(metric, *draw(rank + 2))
            values[name] = metric.compute().item()
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(values), encoding="utf-8")
    return values


def test_two_real_processes_add_up(tmp_path):
    other = mp.get_context("spawn").Process(target=take_part, args=(1, str(tmp_path)))
    other.start()
    found = [take_part(0, str(tmp_path))]
    other.join()
    found.append(json.loads((tmp_path / "1.json").read_text("utf-8")))
    for name, (make, draw, _) in TABLE.items():
        alone = make()
        feed(alone, *draw(2))
        feed(alone, *draw(3))
        for values in found:
            assert values[name] == pytest.approx(alone.compute().item(), abs=1e-12), name


def test_refusals():
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(ValueError, match=r"`wrong` must have the shape \(N,\) of `right`, but got \(2,\) and \(1,\)"):
        preferred(one, two)
    with pytest.raises(ValueError, match="`right` must hold log-likelihoods, but got nan at index 0"):
        lead(torch.tensor([math.nan]), one)
    with pytest.raises(ValueError, match="`outcomes` and `edits` must be equally long, but got 1 and 2"):
        RewriteExact().update(torch.tensor([True]), ["a", "b"])
    with pytest.raises(
        ValueError, match="`kind` must be one of rewrite, paraphrase, neighborhood, but got 'attribute'"
    ):
        EditScore().update("attribute", one, one, ["a"])
    with pytest.raises(ValueError, match="`predicted` and `expected` must be equally long, but got 1 and 2"):
        token_agreement([(1,)], [(1,), (2,)])
    with pytest.raises(ValueError, match="answer 1 has 1 and 2"):
        token_agreement([(1,), (1,)], [(1,), (1, 2)])
    with pytest.raises(ValueError, match="answer 0 has 0 and 0"):
        token_agreement([()], [()])
    with pytest.raises(ValueError, match="`entities` must hold at least one entity, but got none"):
        names_all("x", [])
    with pytest.raises(ValueError, match="names must be given for each text, but got 1 texts and 0 groups"):
        at_start(["a"], [])
    with pytest.raises(TypeError, match="names must be a sequence of strings, but got the string 'Rome'"):
        Start().update(["a"], ["Rome"])
    with pytest.raises(ValueError, match="`texts` and `references` must be equally long, but got 1 and 0"):
        ReferenceScore(Tfidf.fit(SNIPPETS)).update(["a"], [], ["x"])
    assert issubclass(ReferenceScore, Metric)
