"""MQuAKE (arXiv:2305.14795): multi-hop questions whose answers change with one or several edits."""

from mega_pl.data.records import Record, probe
from mega_pl.data.sources import Source
from mega_pl.edits.request import EditCase, EditRequest

_COMMIT = "b87ee8ec4b62493e9e57c6f4ad42653db8dde452"

SOURCES = (
    Source(
        name="mquake",
        file=f"https://raw.githubusercontent.com/princeton-nlp/MQuAKE/{_COMMIT}/datasets/MQuAKE-CF-3k.json",
        revision=_COMMIT,
        sha256="ce27a39c39f2983512b9b5578fadea5fbe352e5368f49d64f38d37ce304edc80",
    ),
)


def parse(record: Record, index: int) -> list[EditCase]:
    """The cases of a record.

    Each of its ``requested_rewrite`` becomes an edit of its own, ``CASE_ID-0``, ``CASE_ID-1`` and so on. The
    questions, which need all of them at once, are portability of the first; their answers are ``new_answer`` and
    ``new_answer_alias``. Records may contradict each other: edit one at a time, or choose some.
    """
    case_id = record.identifier("case_id", default=index)
    rewrites = record.children("requested_rewrite")
    if not rewrites:
        raise record.refusal("requested_rewrite", "a list of at least one edit", None)
    answers = (record.text("new_answer"), *record.texts("new_answer_alias", blank=True))
    questions = tuple(probe(question, answers) for question in record.texts("questions"))
    return [
        EditCase(request=_request(rewrite, f"{case_id}-{i}"), portability=() if i else questions)
        for i, rewrite in enumerate(rewrites)
    ]


def _request(rewrite: Record, edit_id: str) -> EditRequest:
    return EditRequest(
        edit_id=edit_id,
        prompt=rewrite.text("prompt"),
        subject=rewrite.text("subject"),
        target_new=rewrite.child("target_new").text("str"),
        target_true=rewrite.child("target_true").text("str"),
        relation=rewrite.text("relation_id", default=""),
    )
