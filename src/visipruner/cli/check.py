"""`visipruner check`: whether pruning a model is right, tried on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from visipruner.cli.console import Status, clean, output, print_json, show_table
from visipruner.cli.options import (
    AllowDownload,
    AsJson,
    Attention,
    DType,
    Implementation,
    command,
    flag,
    model,
    option,
)

EXAMPLES = """
visipruner check --model ./my-model

visipruner check --model ./my-model --full --dtype float32
"""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    model: str = model(
        "A model that an installed package brings, a folder, or a Hugging Face id that is already cached."
    )
    full: bool = flag(
        "--full",
        "Check the model itself, weights and processor, after the tiny model of random weights that is made from its "
        "config.",
    )
    dtype: DType = option(DType.FLOAT32, "NAME", "Precision of the weights; float32 sees the smallest errors.")
    attn: Implementation = Attention.SDPA
    device: str = option(
        "", "NAME", "Where the full model runs: cpu, cuda, ...", shown="an accelerator where there is one, else cpu"
    )
    allow_download: AllowDownload = False
    as_json: AsJson = False


@command(CheckOptions, EXAMPLES)
def check(options: CheckOptions) -> None:
    """Try whether pruning a model is right: what is dropped must be attention edges that are cut.

    Ends with 0 where every check passes, with 1 where one does not. `attach` knows the result on this machine.
    """
    from visipruner import checking, models

    status = Status()
    with status.busy("Making a tiny model of the config"):
        config = models.config_of(options.model, allow_download=options.allow_download)
        reports = [checking.check_tiny(config)]
    if options.full and not reports[0].refused:
        with status.busy("Loading and checking the model"):
            loaded = models.load(
                options.model, options.dtype.value, options.attn.value, options.allow_download, options.device
            )
            reports.append(checking.check(loaded.model, loaded.processor))
    if options.as_json:
        print_json(
            {"passed": all(report.passed for report in reports), "reports": [each.to_dict() for each in reports]}
        )
    else:
        for report in reports:
            if report.findings:
                show_table(output(), report.table())
            output().print(clean(str(report)), style="green" if report.passed else "red")
    if not all(report.passed for report in reports):
        raise typer.Exit(1)
