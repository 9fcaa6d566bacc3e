"""How many prompts were pruned, and how many tokens left. Nothing here knows vLLM."""

from __future__ import annotations

from collections import Counter

# What is a state and not a count.
REMEMBERED = "requests_remembered"

# What each number is, as metrics show it.
MEANING = {
    REMEMBERED: "Requests of which something is remembered, until the step after their last",
    "prompts_pruned": "Prompts with images that a method looked at",
    "prompts_dense": "Prompts with images that were read as they are: they came in parts, or want prompt logprobs",
    "prompts_failed": "Requests that ended with an error of the method",
    "visual_tokens": "Visual tokens of the prompts that a method looked at",
    "visual_tokens_dropped": "Those of them that had left by the last layer",
    "visual_rows_skipped": "Visual rows times layers that did not run",
}


class Numbers:
    """Counts since somebody took them last, and the state."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._state: int | None = None

    def add(self, found: dict[str, int]) -> None:
        """Counts add up, a state is replaced; names are those of `MEANING`."""
        for name, number in found.items():
            if name == REMEMBERED:
                self._state = number
            else:
                self._counts[name] += number

    def take(self) -> dict[str, int]:
        """What is not zero, and the state where it was said; both begin anew."""
        found = {name: count for name, count in self._counts.items() if count}
        if self._state is not None:
            found[REMEMBERED] = self._state
        self.__init__()  # type: ignore[misc]
        return found


def sentence(totals: dict[str, int]) -> str:
    """Totals as a log shows them."""
    pruned, dense, failed, tokens, dropped = (
        totals.get(name, 0)
        for name in ("prompts_pruned", "prompts_dense", "prompts_failed", "visual_tokens", "visual_tokens_dropped")
    )
    return (
        f"visipruner: {pruned} prompts pruned, {dropped} of {tokens} visual tokens dropped, {dense} prompts dense, "
        f"{failed} failed"
    )
