"""How many prompts were pruned, and how many tokens left. Nothing here knows vLLM."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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


@dataclass
class Counters:
    """What happened since somebody asked last."""

    prompts_pruned: int = 0
    prompts_dense: int = 0
    prompts_failed: int = 0
    visual_tokens: int = 0
    visual_tokens_dropped: int = 0
    visual_rows_skipped: int = 0

    def take(self) -> dict[str, int]:
        """What is not zero, which begins anew."""
        found = {name: count for name, count in asdict(self).items() if count}
        self.__init__()  # type: ignore[misc]
        return found


def sentence(totals: dict[str, int]) -> str:
    """Totals as a log shows them."""
    get = totals.get
    return (
        f"visipruner: {get('prompts_pruned', 0)} prompts pruned, {get('visual_tokens_dropped', 0)} of "
        f"{get('visual_tokens', 0)} visual tokens dropped, {get('prompts_dense', 0)} prompts read dense, "
        f"{get('prompts_failed', 0)} failed"
    )
