"""`python tools/method_table.py docs/methods.md` writes the table of methods there; without a page, prints it."""

from __future__ import annotations

import sys
from pathlib import Path

from visipruner.contract.pruner import DroppingPruner
from visipruner.pruners.registry import available, method_class

BEGIN = "<!-- Written by `python tools/method_table.py docs/methods.md`; do not edit by hand. -->\n"
END = "<!-- End of the table. -->"


def as_markdown() -> str:
    """One row per method of the registry."""
    rows = ["| `--method` | what it does | paper | tokens leave | looks at | positions |", "|---|---|---|---|---|---|"]
    for name in available():
        cls = method_class(name)
        about, positions = cls.about, cls.published_positions if issubclass(cls, DroppingPruner) else ""
        rows.append(f"| `{name}` | {about.summary} | {about.paper} | {about.acts} | {about.needs} | {positions} |")
    return "\n".join(rows) + "\n"


def inserted(page: str) -> str:
    """A page with the table between its two marks brought up to date. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN.strip()} and {END} to write between")
    return before + begin + as_markdown() + end + after


if __name__ == "__main__":
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        target.write_text(inserted(target.read_text()))
    else:
        print(as_markdown(), end="")
