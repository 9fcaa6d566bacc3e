"""`python -m visipruner.accounting [--json]`: the paper's published costs beside what its formulas give."""

from __future__ import annotations

import argparse
import json

from visipruner.accounting.published import compare_with_paper, format_table


def main(arguments: list[str] | None = None) -> None:
    """Prints the comparison, as a Markdown table or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m visipruner.accounting", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    rows = compare_with_paper()
    if parser.parse_args(arguments).json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        print(format_table(rows))


if __name__ == "__main__":
    main()
