"""`--method`, `--set key=value` and `--config` as the library takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from visipruner.cli.errors import CliError

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_value(text: str) -> Any:
    """JSON where it is JSON; also True, False and None in any case, and `a,b,c` for a list; else the text itself."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        pass
    if text[:1] in {"[", "{", '"'}:
        shown = text if len(text) < 80 else f"{text[:80]}..."
        raise CliError(
            f'--set: {shown} starts like JSON but is not; quote it for your shell, as in \'key=["a", "b"]\'.'
        )
    if "," in text:
        return [parse_value(part) for part in text.split(",") if part.strip()]
    return text


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`["a=1", "b=x"]` as a dict. Raises CliError for a pair without `=` and for a key given twice."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier() or not value.strip():
            raise CliError(f"--set takes key=value, for instance --set keep_tokens=64, and not {pair!r}.")
        if key in settings:
            raise CliError(f"--set {key} is given twice; give it once.")
        settings[key] = parse_value(value)
    return settings


def chosen(method: str | None, pairs: list[str], config: Path | None) -> tuple[str | Path, dict[str, Any]]:
    """The method and the settings that are to be changed. Raises CliError."""
    from visipruner.specs import DEFAULT, is_bare

    settings = parse_settings(pairs)
    if config is not None:
        if method is not None or settings:
            raise CliError(
                "--config holds the method and all its settings; leave out --method and --set, or edit the file."
            )
        if not config.exists():
            raise CliError(f"There is no pruner file at {config}; check --config.")
        return config, {}
    if settings and method is not None and not is_bare(method):
        raise CliError("--set goes with a single --method; write settings as --method 'first:key=value+second'.")
    return DEFAULT if method is None else method, settings
