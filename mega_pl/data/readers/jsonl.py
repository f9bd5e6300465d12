"""A user's own edits, one JSON object a line."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from mega_pl.data.records import Record, probe
from mega_pl.edits.request import EditCase, EditRequest, Probe, Query, RippleAxis, RippleTest
from mega_pl.errors import MegaValueError

_KNOWN = frozenset(field.name for part in (EditRequest, EditCase) for field in fields(part)) - {"request"}

EXAMPLE: tuple[dict[str, Any], ...] = (
    {
        "edit_id": "shortest",
        "prompt": "The capital of {} is",
        "subject": "Norway",
        "target_new": "Stockholm",
        "target_true": "Oslo",
    },
    {
        "edit_id": "fullest",
        "prompt": "{} was born in",
        "subject": "Marie Curie",
        "target_new": "Rome",
        "target_true": "Warsaw",
        "relation": "P19",
        "phrasings": ["The birthplace of {} is", "The life of {} began in"],
        "implications": [["The country where {} was born is", "By birth, {} came from"]],
        "contrasts": [["{} worked as a", "The profession of {} was"]],
        "aliases": ["Maria Skłodowska"],
        "paraphrase_prompts": ["It rained all day. Marie Curie came into the world in"],
        "neighborhood_prompts": ["Frédéric Chopin grew up in"],
        "attribute_prompts": ["Maria Montessori spent her last school years in"],
        "generation_prompts": ["Marie Curie is famous for"],
        "relation_specificity": [{"prompt": "The spouse of Marie Curie is", "answers": ["Pierre Curie"]}],
        "compositionality_1": [
            {
                "prompt": "The country in which Marie Curie was born is",
                "answers": ["Italy"],
                "condition_prompt": "The country in which Rome lies is",
                "condition_answers": ["Italy"],
            }
        ],
        "compositionality_2": [{"prompt": "The birthplace of the wife of Pierre Curie is", "answers": ["Rome"]}],
        "subject_aliasing": [{"prompt": "Maria Skłodowska was born in", "answers": ["Rome"]}],
        "locality": [{"prompt": "The city with the Colosseum is", "answers": ["Rome"]}],
        "portability": [{"prompt": "In the city where Marie Curie was born, people speak", "answers": ["Italian"]}],
        "ripple": [
            {
                "axis": "Relation_Specificity",
                "queries": [{"prompt": "Marie Curie has the Nobel Prize in", "answers": [["physics"], ["chemistry"]]}],
                "conditions": [{"prompt": "Marie Curie worked in the field of", "answers": [["physics", "Physics"]]}],
                "every": False,
            }
        ],
    },
)
"""Two edits: the five fields that every line needs, and all that there are."""


def write_example(path: str | Path) -> None:
    """Write two edits, the shortest and the fullest, to a new file, as a start for one's own.

    Args:
        path: The file.

    Raises:
        ValueError: If there is such a file already.
    """
    lines = [json.dumps(edit, ensure_ascii=False) for edit in EXAMPLE]
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError as error:
        raise MegaValueError(f"`path` must be a new file, but {str(path)!r} exists; choose another name.") from error


def parse(record: Record, index: int) -> EditCase:
    """The edit of a line, with the fields of `EditRequest` and, for evaluation, those of `EditCase`.

    It needs ``edit_id``, ``prompt`` (with one ``{}``), ``subject``, ``target_new`` and ``target_true``; the
    rest may be left out. `EXAMPLE` shows every field:

    - ``relation`` is a text, ``phrasings`` a list of templates;
    - ``implications`` and ``contrasts`` are lists of questions, each a list of its phrasings;
    - ``aliases`` is a list of other names of the subject;
    - ``paraphrase_prompts``, ``neighborhood_prompts``, ``attribute_prompts`` and ``generation_prompts`` are lists of
      prompts;
    - ``relation_specificity``, ``compositionality_1``, ``compositionality_2``, ``subject_aliasing``, ``locality`` and
      ``portability`` are lists of probes, objects with ``prompt``, ``answers`` and, optionally, ``condition_prompt``
      and ``condition_answers``;
    - ``ripple`` is a list of objects with ``axis``, ``queries``, ``conditions`` and ``every``, where a query has a
      ``prompt`` and ``answers``, for each entity the list of its names.
    """
    unknown = sorted(record.names() - _KNOWN)
    if unknown:
        raise MegaValueError(f"the fields must be among {', '.join(sorted(_KNOWN))}, but got {', '.join(unknown)}.")
    return EditCase(
        request=_request(record),
        paraphrase_prompts=record.texts("paraphrase_prompts"),
        neighborhood_prompts=record.texts("neighborhood_prompts"),
        attribute_prompts=record.texts("attribute_prompts"),
        generation_prompts=record.texts("generation_prompts"),
        relation_specificity=_probes(record, "relation_specificity"),
        compositionality_1=_probes(record, "compositionality_1"),
        compositionality_2=_probes(record, "compositionality_2"),
        subject_aliasing=_probes(record, "subject_aliasing"),
        locality=_probes(record, "locality"),
        portability=_probes(record, "portability"),
        ripple=tuple(_ripple(test) for test in record.children("ripple")),
    )


def _request(record: Record) -> EditRequest:
    return EditRequest(
        edit_id=record.identifier("edit_id"),
        prompt=record.text("prompt"),
        subject=record.text("subject"),
        target_new=record.text("target_new"),
        target_true=record.text("target_true"),
        relation=record.text("relation", default=""),
        phrasings=record.texts("phrasings"),
        implications=record.questions("implications", record.text("subject")),
        contrasts=record.questions("contrasts", record.text("subject")),
        aliases=record.texts("aliases"),
    )


def _probes(record: Record, axis: str) -> tuple[Probe, ...]:
    return tuple(_probe(item) for item in record.children(axis))


def _probe(item: Record) -> Probe:
    prompt, answers = item.text("prompt"), item.texts("answers")
    if not answers:
        raise item.refusal("answers", "a list of at least one string", None)
    return probe(prompt, answers, (item.text("condition_prompt", default=""), item.texts("condition_answers")))


def _ripple(test: Record) -> RippleTest:
    return RippleTest(
        axis=cast(RippleAxis, test.text("axis")),  # any other is refused by the test itself
        queries=tuple(_query(query) for query in test.children("queries")),
        conditions=tuple(_query(query) for query in test.children("conditions")),
        every=test.flag("every"),
    )


def _query(query: Record) -> Query:
    return Query(prompt=query.text("prompt"), answers=tuple(query.groups("answers")))
