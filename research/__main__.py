"""`python -m research`, see `research.cli`."""

from research.cli import app

app(prog_name="python -m research")
