"""`visipruner list`: what can be chosen."""

from __future__ import annotations

import json


def show(as_json: bool) -> None:
    """Prints the methods and the model types with their families."""
    from rich.console import Console

    from visipruner import adapters
    from visipruner.cli.present import show_names
    from visipruner.pruners import registry

    methods, families = registry.available(), adapters.supported()
    if as_json:
        print(json.dumps({"methods": methods, "families": families}, indent=2))
        return
    console = Console(highlight=False)
    show_names(console, "Methods (--method)", methods.items())
    show_names(console, "Model types (config.model_type) and their families", families.items())
