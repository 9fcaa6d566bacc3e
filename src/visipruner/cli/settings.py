"""`--set key=value` pairs as Python values, and the pruner that `--method`, `--set` and `--config` ask for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visipruner.cli.errors import CliError
from visipruner.models import packaged

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_value(text: str) -> Any:
    """JSON where it is JSON; also True, False and None in any case, and `a,b,c` for a list; else the text itself."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if text[:1] in {"[", "{", '"'}:
        raise CliError(f'--set: {text} starts like JSON but is not; quote it for your shell, as in \'key=["a", "b"]\'.')
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


def make_pruner(method: str | None, pairs: list[str], config: Path | None, model: str = "") -> Pruner:
    """The pruner asked for; without a name `visipruner`, as calibrated for the model where that is known.

    Raises CliError or ConfigError, both with a sentence for the user.
    """
    settings = parse_settings(pairs)
    if config is None:
        from visipruner.pruners import registry

        if method is not None and (":" in method or "+" in method):
            if settings:
                raise CliError(
                    "--set goes with a single --method; write settings as --method 'first:key=value+second'."
                )
            return registry.make_from_spec(method)
        ours = packaged.calibrated(model) if method is None else None
        if ours is not None:
            return registry.make(ours.name, **{**ours.settings(), **settings})
        return registry.make(method or "visipruner", **settings)
    if method is not None or settings:
        raise CliError(
            "--config holds the method and all its settings; leave out --method and --set, or edit the file."
        )
    if not config.exists():
        raise CliError(f"There is no pruner file at {config}; check --config.")
    import visipruner

    return visipruner.load_pruner(config)


def pruner_for(spec: str, model: str, num_layers: int) -> Pruner:
    """The method that a comparison means by `spec`, for `model` with so many decoder layers.

    A bare name has the settings calibrated for the model, or its paper's, their layers at the same depth. Raises
    ConfigError.
    """
    from visipruner.pruners.registry import method_class

    ours = packaged.calibrated(model)
    if ours is not None and spec == ours.name:
        return ours
    if ":" in spec or "+" in spec:
        return make_pruner(spec, [], None)
    return method_class(spec).for_depth(num_layers)
