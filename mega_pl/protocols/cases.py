"""What several protocols read off a case."""

from mega_pl.edits import EditCase, EditRequest


def new_names(case: EditCase) -> tuple[str, ...]:
    """The new object of a case, then its other names.

    Those are what the tests that ask the edited fact under another name of the subject accept besides it. A name of one
    character is left out unless it is a digit.
    """
    new = case.request.target_new
    groups = [probe.answers for probe in case.subject_aliasing]
    queries = (query for test in case.ripple if test.axis == "Subject_Aliasing" for query in test.queries)
    groups += [names for query in queries for names in query.answers]
    others = (name for group in groups if new in group for name in group)
    return tuple(dict.fromkeys([new, *(name for name in others if len(name) > 1 or name.isdigit())]))


def relation_of(request: EditRequest) -> str:
    """The relation of an edit, which its template stands for where it names none."""
    return request.relation or request.prompt
