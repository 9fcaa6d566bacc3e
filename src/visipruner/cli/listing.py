"""`visipruner list`: what can be chosen, and what can be set."""

from __future__ import annotations

import json
from dataclasses import asdict


def show(as_json: bool) -> None:
    """Prints the methods with their settings, the model types with their families, and the models of packages."""
    from visipruner import adapters
    from visipruner.cli.present import show_families, show_methods, show_models
    from visipruner.contract.settings import declared
    from visipruner.models import packaged
    from visipruner.pruners import registry

    methods = {
        name: {"description": cls.about.summary, **asdict(cls.about), "settings": declared(cls)}
        for name, cls in ((name, registry.method_class(name)) for name in registry.available())
    }
    families = adapters.supported()
    if as_json:
        print(json.dumps({"methods": methods, "families": families, "models": packaged.names()}, indent=2))
        return
    show_methods(methods)
    show_families(families)
    show_models(packaged.names())
