"""`python -m tools.families docs/families.md` writes the table of families and features into that page."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.families import cells, types
from tools.families.features import table
from visipruner.adapters import BUILT_IN

BEGIN = "<!-- Written by `python -m tools.families docs/families.md`; do not edit by hand. -->\n"
END = "<!-- End of what is written. -->\n"


# Text decoders know no images: whoever calls them marks the rows, and most features are not theirs to have.
_SHOWN = [adapter for adapter in BUILT_IN if adapter.locate is not None]


def with_table(page: str) -> str:
    """`page` with a fresh table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + _tables() + END + after


def _tables() -> str:
    return "\n".join([types.table(types.written()), table(_SHOWN), cells.table(cells.refusals())])


def main() -> None:
    """Prints the table, or writes it into the page named on the command line."""
    if len(sys.argv) == 1:
        print(_tables(), end="")
        return
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    main()
