"""`python -m visipruner.pruners README.md` writes the table of methods into that page; without a page, prints it."""

import sys
from pathlib import Path

from visipruner.pruners.table import as_markdown, inserted

if len(sys.argv) > 1:
    page = Path(sys.argv[1])
    page.write_text(inserted(page.read_text()))
else:
    print(as_markdown(), end="")
