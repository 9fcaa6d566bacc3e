"""What lists and tables say about a method."""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A method in a few words.

    Attributes:
        summary: one line for lists.
        paper: where it was published; empty for controls.
        acts: where tokens leave.
        needs: what it looks at.
    """

    summary: str
    paper: str = ""
    acts: str = "nowhere"
    needs: str = "nothing"
