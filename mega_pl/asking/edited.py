"""What whoever asks must know of edits in force: the text that asks a prompt, and which edit each prompt got."""

from collections.abc import Sequence


class Edited:
    """A backbone with edits in force, asked as it is; editors that ask or route in another way derive from it."""

    oracle: bool = False
    """Whether whoever asks, and knows which edit a prompt is about, should say so by `route`."""

    def prompt(self, text: str) -> str:
        """The text that the model must be given to ask a prompt; it ends as the prompt does."""
        return text

    def route(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Decide which edit each row of the batches to come gets; edits that are not routed act on every prompt.

        Args:
            edits: For each row an edit, or None for none, instead of asking the router. None asks it again.
            forced: Whether the router must choose an edit for every prompt.

        Raises:
            KeyError: If there is no such edit.
        """

    @property
    def fired(self) -> list[str | None] | None:
        """The edit that each prompt of the last batch got, or None where none did; None where edits are not routed."""
        return None


BARE = Edited()
"""No edits in force: prompts are asked as they are and nothing is routed."""
