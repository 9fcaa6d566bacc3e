"""What a check of a model found, as a table, as JSON, and as a line for whoever asks later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from visipruner.tables import Table

State = Literal["passes", "fails", "unseen", "left out"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was tried. where: the layer, padding side or prompt it was tried at, empty where there is one.
        state: "unseen" where rounding, or the plain model's own differences, hide what was to be seen.
        error: largest difference of logits; `allowed`: how large it may be; `effect`: what pruning itself changes.
        says: in words what differs and where, or why nothing was tried.
    """

    check: str
    where: str
    state: State
    error: float | None = None
    allowed: float | None = None
    effect: float | None = None
    says: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one model.

    Attributes:
        model_type: of its config. mode: "tiny" (its config, shrunk) or "full" (its weights).
        fingerprint: of its config; `versions`: of the packages it was checked with.
        refused: why it cannot be pruned, where it was refused before anything ran.
    """

    model_type: str
    mode: str
    fingerprint: str
    versions: dict[str, str]
    findings: Sequence[Finding] = ()
    refused: str = ""

    @property
    def passed(self) -> bool:
        """Whether something was tried, and nothing failed or went unseen."""
        states = [finding.state for finding in self.findings]
        return not self.refused and "passes" in states and not {"fails", "unseen"} & set(states)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "passed": self.passed}

    def table(self) -> Table:
        """A row a check."""
        rows = [
            [
                f"{finding.check} ({finding.where})" if finding.where else finding.check,
                finding.state,
                _number(finding.error),
                _number(finding.allowed),
                _number(finding.effect),
                finding.says or "-",
            ]
            for finding in self.findings
        ]
        return Table(["check", "result", "error", "allowed", "effect", "what differs"], rows)

    def __str__(self) -> str:
        if self.refused:
            return self.refused
        bad = [finding for finding in self.findings if finding.state in ("fails", "unseen")]
        told = "; ".join(f"{finding.check} {finding.state}: {finding.says}" for finding in bad)
        return f"{self.model_type} ({self.mode}): {'passes' if self.passed else told or 'nothing was tried'}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
