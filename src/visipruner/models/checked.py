"""Which models passed `visipruner check` on this machine: kept by their config and the versions of what ran it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visipruner.files import write_json

# What a config says of a checkpoint's place and words, and not of how the model works.
_PASSING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "architectures")


def folder() -> Path:
    """Where results are kept: VISIPRUNER_CACHE, or visipruner in the user's cache."""
    own = os.environ.get("VISIPRUNER_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visipruner"


def config_fingerprint(config: Any) -> str:
    """16 hexadecimal digits of all that a transformers config says of how its model works."""
    text = json.dumps(_lasting(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lasting(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {str(key): _lasting(value) for key, value in part.items() if key not in _PASSING}
    return part


def versions() -> dict[str, str]:
    """Of the packages that decide whether a model works."""
    return {name: version(name) for name in ("visipruner", "transformers", "torch")}


def keep(report: Mapping[str, Any]) -> None:
    """Keeps a result, in place of an older one of the same config and mode."""
    write_json(_place(report["fingerprint"], report["mode"]), report)


def kept(config: Any) -> dict[str, Any] | None:
    """The result of a model's config with the versions that are installed, that of the full check before the tiny one;
    None where there is none."""
    fingerprint, now = config_fingerprint(config), versions()
    for mode in ("full", "tiny"):
        try:
            report: dict[str, Any] = json.loads(_place(fingerprint, mode).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if report.get("versions") == now:
            return report
    return None


def warning(config: Any) -> str | None:
    """What to say to whoever attaches to a type that nobody described, None where it passed the check."""
    found = kept(config)
    name = getattr(config, "_name_or_path", "") or "MODEL"
    if found is None:
        return (
            f"Models of type {config.model_type!r} are read from the model itself and this one is unchecked: "
            f"run `visipruner check --model {name}` (from Python: visipruner.check(model, processor))"
        )
    if not found["passed"]:
        return (
            f"This model failed its check, so answers may be wrong: `visipruner check --model {name}` says what differs"
        )
    return None


def _place(fingerprint: str, mode: str) -> Path:
    return folder() / "checks" / f"{fingerprint}-{mode}.json"
