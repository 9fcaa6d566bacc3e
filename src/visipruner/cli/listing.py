"""`visipruner list`: what can be chosen, and what can be set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from visipruner.cli.console import output, print_json, show_table, told
from visipruner.cli.options import AsJson, argument, command
from visipruner.tables import Table

EXAMPLES = """
visipruner list

visipruner list visipruner

visipruner list --json
"""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    method: str | None = argument(None, "METHOD", "Show this method's settings.")
    as_json: AsJson = False


@command(ListOptions, EXAMPLES)
def list_(options: ListOptions) -> None:
    """List the pruning methods, model families and benchmarks; of one METHOD its settings."""
    from visipruner import adapters
    from visipruner.contract.settings import declared
    from visipruner.evaluation import datasets
    from visipruner.models import packaged
    from visipruner.pruners import registry

    names = registry.available() if options.method is None else [options.method]
    methods = {
        name: {"description": cls.about.summary, **asdict(cls.about), "settings": declared(cls)}
        for name, cls in ((name, registry.method_class(name)) for name in names)
    }
    families, models = adapters.supported(), packaged.names()
    if options.as_json:
        benchmarks = {kind.name: {"title": kind.title, "metric": kind.metric} for kind in datasets.kinds()}
        print_json({"methods": methods, "families": families, "benchmarks": benchmarks, "models": models})
    elif options.method is not None:
        _show_settings(options.method, methods[options.method])
    else:
        _show_methods(methods)
        types: dict[str, str] = {}
        for kind, family in families.items():
            types[family] = f"{types[family]}, {kind}" if family in types else kind
        _show_group("Model families and their types (model_type in config.json)", types)
        titles = {kind.name: kind.title for kind in datasets.kinds()}
        _show_group("Benchmarks (--benchmark NAME of eval)", titles)
        brought = dict.fromkeys(models, "") or {"none": ""}
        _show_group("Models of installed packages (--model NAME)", brought)


def _show_methods(methods: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [[name, _arxiv(method["paper"]), method["acts"]] for name, method in methods.items()]
    show_table(output(), Table(["--method", "arXiv", "tokens leave"], rows))
    output().print("\nWhat a method does and its settings: visipruner list METHOD")


def _arxiv(paper: str) -> str:
    """The number alone: with the authors a method takes more than a line."""
    found = re.search(r"arXiv (\S+)", paper)
    return found[1] if found else paper or "-"


def _show_settings(name: str, method: Mapping[str, Any]) -> None:
    console = output()
    console.print(f"[bold]{name}[/bold]  {method['description']}")
    console.print(f"paper: {method['paper'] or 'none'}; tokens leave {method['acts']}; looks at {method['needs']}")
    settings = {key: one for key, one in method["settings"].items() if name != "composed"}
    if not settings:
        console.print("It has no settings." if name != "composed" else "Its settings are those of its parts.")
        return
    rows = [
        [key, told(one["default"]) if "default" in one else "must be given", one["takes"]]
        for key, one in settings.items()
    ]
    show_table(console, Table(["--set", "published", "takes"], rows))


def _show_group(title: str, lines: Mapping[str, str]) -> None:
    console = output()
    console.print(f"\n[cyan]{title}[/cyan]")
    for name, text in lines.items():
        console.print(f"  [bold]{name}[/bold]  {text}")
