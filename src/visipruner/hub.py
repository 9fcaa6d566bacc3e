"""A method's settings on the Hugging Face hub: a `pruner.json` in a repository of its own or beside a model's weights,
and the card that says what it is worth."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visipruner.contract.pruner import FILE_NAME, Pruner
from visipruner.errors import ConfigError, LoadError, first_line
from visipruner.pruners.registry import load_pruner
from visipruner.tables import Table

CARD = """\
---
library_name: visipruner
base_model: {base_model}
tags:
- visual-token-pruning
- {method}
---

# {method} for {base_model}

{summary}{paper}

```python
import visipruner as vp

with vp.attach(model, vp.hub.from_pretrained({repo_id!r})) as handle:   # model: {base_model}
    model.generate(**inputs)
print(handle.trace)
```

## Settings

{settings}

## Calibration

{calibration}

## Measured loss

{loss}
"""
_NO_CALIBRATION = "Nobody said on which data these settings were chosen."
_NOT_MEASURED = "Not measured. `visipruner eval --config {file} --model {base_model} --out results` measures it."


def from_pretrained(
    name: str | Path, *, revision: str | None = None, token: str | bool | None = None, local_files_only: bool = False
) -> Pruner:
    """The method of a `pruner.json`: that file, a folder that holds it, a checkpoint's too, or a hub repository.

    Raises LoadError where the repository or its file cannot be had, ConfigError for a file that is no pruner.json.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    path = Path(name).expanduser()
    if path.exists():
        return load_pruner(path)
    try:
        file = hf_hub_download(
            str(name),
            FILE_NAME,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            library_name="visipruner",
        )
    except HFValidationError:
        raise LoadError(f"There is no file or folder {name}, and no hub repository can have that name.") from None
    except Exception as error:  # of the network, of the hub, or its cache
        raise LoadError(f"No {FILE_NAME} could be had from the hub's {name}: {first_line(error)}.") from error
    return load_pruner(file)


def push_to_hub(
    pruner: Pruner,
    repo_id: str,
    *,
    card: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str = "Add settings of visipruner",
) -> str:
    """Writes `pruner.json` into a model repository, made where there is none; returns the address of the commit.

    `card` replaces the repository's README.md; without one that stays, as a model's own should. Raises what
    huggingface_hub raises.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="visipruner")
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pruner.save_pretrained(folder)
        if card is not None:
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        return str(
            api.upload_folder(
                repo_id=repo.repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        )


def model_card(
    pruner: Pruner,
    base_model: str,
    repo_id: str,
    *,
    calibration: str = "",
    results: Mapping[str, Any] | None = None,
) -> str:
    """A README.md for the hub, as Markdown: method, settings, what they were chosen on, what they lose.

    Args:
        base_model: the hub id of the model that they are for. repo_id: where the card will lie.
        calibration: on which data, and how, the settings were chosen; the card says so where nobody tells.
        results: results.json of `visipruner eval`, or `vp.compare(...).document`, with a row of this very method.

    Raises ConfigError where `results` measured other settings.
    """
    about = pruner.about
    return CARD.format(
        method=pruner.name,
        base_model=base_model,
        repo_id=repo_id,
        summary=about.summary,
        paper=f" ({about.paper})." if about.paper else ".",
        settings=Table.of(
            {"setting": lambda pair: f"`{pair[0]}`", "value": lambda pair: f"`{pair[1]!r}`"},
            [*pruner.settings().items()],
        ).markdown(),
        calibration=calibration or _NO_CALIBRATION,
        loss=_NOT_MEASURED.format(file=FILE_NAME, base_model=base_model) if results is None else _loss(pruner, results),
    )


def _loss(pruner: Pruner, results: Mapping[str, Any]) -> str:
    """What an evaluation found for this method, and where it found it."""
    wanted = (pruner.name, pruner.settings())
    names = [name for name, one in results["methods"].items() if (one["method"], one["settings"]) == wanted]
    if not names:
        raise ConfigError(
            f"These results have no row of {pruner.name} with these settings; evaluate what you publish, its "
            f"{FILE_NAME} by --config."
        )
    rows = {row["method"]: row for row in results["rows"]}
    table = Table.of(
        {
            "": lambda row: row["method"],
            "accuracy": lambda row: _share(row["accuracy"]["value"]),
            "difference": lambda row: _difference(row["difference"]),
            "answers as the dense model's": lambda row: _share(row["agreement"]["value"]),
            "decoder FLOPs cut": lambda row: _share(row["flops_cut"]),
        },
        [rows["dense"], rows[names[0]]],
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['samples']} samples of {results['data']} ({results['benchmark']['metric']}), seed "
        f"{results['seed']}, model {results['model']['name']} in {results['model']['dtype']}; {versions}. "
        f"Intervals: 95 % bootstrap over images.\n\n{table.markdown()}"
    )


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1%}"


def _difference(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['value']:+.1%} (no interval)"
    return f"{found['value']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})"
