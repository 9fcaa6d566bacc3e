"""Every method of the registry on every type that nobody described: which are refused, and with what sentence.

`python -m tools.families.cells` tries each pair with a tiny model and writes tools/families/cells.json.
`tests/families/test_cells.py` holds it against the engine's invariants: a pair holds them all or is refused so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from tools.families.methods import row, tuned
from tools.families.types import default_config, written
from visipruner import adapters
from visipruner.adapters import generic
from visipruner.adapters.known_towers import TOWERS
from visipruner.checking.prompts import Asked, TinyPrompts
from visipruner.checking.subject import Subject
from visipruner.checking.tiny import shrunk_model
from visipruner.contract.pruner import Pruner
from visipruner.engine.host import Host
from visipruner.errors import ConfigError, UnsupportedModelError
from visipruner.pruners.composed import Composed
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.registry import available

RESULTS = Path(__file__).with_name("cells.json")
# Settings with an entry for each of `layers`.
BESIDE_LAYERS = ("keep", "keep_ratios", "multiples")
REFUSALS = (UnsupportedModelError, ConfigError)


def kinds() -> list[str]:
    """The types that pass their tiny check and are read from the model itself."""
    known = adapters.supported()
    return [kind for kind, one in written().items() if one["result"] == "passes" and kind not in known]


def candidates(name: str, host: Host) -> Iterator[Pruner]:
    """A method as it is tuned for small models; without what changes attention edges; at layers that attend, or right
    after them."""
    pruner, depth = tuned(name, len(host.layers)), len(host.layers)
    attending = [layer for layer in range(depth) if layer not in host.states]
    yield pruner
    if name == "composed":
        yield Composed(parts=(DivPrune(keep_ratio=0.5), tuned("visipruner", depth)))
    if name == "visipruner-reference":
        unrouted: dict[str, Any] = {"stages": ("middle",), "shallow_end": 0, "filter_layer": attending[0]}
        yield replace(pruner, **unrouted)
    for layers in (attending, [layer + 1 for layer in attending if layer + 1 < depth]):
        yield from _at(pruner, layers)


def _at(pruner: Pruner, layers: Sequence[int]) -> Iterator[Pruner]:
    names = {item.name for item in fields(pruner)}
    settings: dict[str, Any] = {}
    if "layer" in names and layers:
        settings["layer"] = layers[0]
    if "layers" in names:
        given: Any = pruner
        first = given.layers[:1] if given.layers[:1] == (0,) and pruner.name == "tops" else ()
        settings["layers"] = (*first, *layers)[: len(given.layers)]
        for beside in names & set(BESIDE_LAYERS):
            settings[beside] = getattr(pruner, beside)[: len(settings["layers"])]
    if settings:
        try:
            yield replace(pruner, **settings)
        except ConfigError:  # not a layer that this method can work at
            return


def fitted(name: str, subject: Subject, runs: bool = True) -> Pruner | str:
    """The first of a method's `candidates` that prunes a prompt (or can be attached), or what is said of the first."""
    said = ""
    for pruner in candidates(name, subject.host):
        try:
            with subject.attach(pruner), torch.no_grad():
                if runs:
                    subject.logits(subject.prompts.inputs([Asked((1, 2), 6)]))
            return pruner
        except REFUSALS as error:
            said = said or str(error).replace(subject.adapter.family, "this type").replace(name, "this method")
    return said


def looks_at_tower(name: str, depth: int) -> bool:
    """Whether a method needs a tower that runs."""
    return bool(tuned(name, depth).vision_layers(24))


def refused(kind: str) -> dict[str, str]:
    """The methods that a type refuses, and why. The tiny models here have no towers: where one is known, what looks at
    it is left to the test."""
    model = shrunk_model(default_config(kind))
    subject = Subject(model, generic.adapter_of(model), TinyPrompts(model))
    depth = len(subject.host.layers)
    tried = [name for name in available() if not (kind in TOWERS and looks_at_tower(name, depth))]
    found = {name: fitted(name, subject, not looks_at_tower(name, depth)) for name in tried}
    return {name: said for name, said in found.items() if isinstance(said, str)}


def refusals() -> dict[str, dict[str, str]]:
    """What the last run over all types found, of every type."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text())
    return found


def table(found: dict[str, dict[str, str]]) -> str:
    """How many pairs hold all invariants, and the others with what they say, as Markdown."""
    methods, total = len(available()), sum(map(len, found.values()))
    why: dict[str, dict[str, list[str]]] = {}
    for kind, those in found.items():
        for name, said in those.items():
            why.setdefault(said, {}).setdefault(name, []).append(kind)
    lines = [
        f"Of the {len(found)} types that are read from the model itself, each with the {methods} methods, "
        f"{len(found) * methods - total} pairs of {len(found) * methods} hold the invariants: rows that are dropped, "
        "merged or frozen are the full-length model with edges cut, while decoding too; prompts of a batch, padded on "
        f"either side, get what they get alone (`make families-test`; `python -m tools.families.cells` counts anew). "
        f"{total} are refused:",
        "",
        row(["why", "methods", "types"]),
        row(["---"] * 3),
    ]
    for said, by_name in why.items():
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, types in by_name.items():
            groups.setdefault(tuple(types), []).append(f"`{name}`")
        for group, names in groups.items():
            told = "all" if len(group) == len(found) else ", ".join(f"`{kind}`" for kind in group)
            lines.append(row([said.replace("|", "/"), ", ".join(names), told]))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tries every pair, and writes those that are refused."""
    found = {}
    for kind in kinds():
        found[kind] = refused(kind)
        print(kind, *found[kind], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
