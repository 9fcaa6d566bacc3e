"""Options, each written once: as a field of a command's class of options, or of `ModelOptions`, which several share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import typer

from visipruner.cli.errors import reports_errors


class DType(StrEnum):
    """Weights' dtypes; `auto` is the checkpoint's own, and for a packaged model its package's choice."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Attention(StrEnum):
    """Attention implementations of transformers that run anywhere."""

    SDPA = "sdpa"
    EAGER = "eager"


Implementation = Annotated[Attention, typer.Option(help="Attention implementation.")]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", metavar="", help="Let a Hugging Face id be downloaded; it may be many gigabytes."),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print the results as one JSON document.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the choice of samples.")]
RULE = (
    "A bare name has the settings that were calibrated for the model, where it brings some, else its published ones "
    "with their layers at the same depth; name:key=value,... its published ones as "
    "they are, with what is written."
)


def _or_packaged(name: str) -> str:
    from visipruner.models import packaged

    return name or packaged.default()


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=_or_packaged,
            help="A model that an installed package brings (see: visipruner list), a folder, or a Hugging Face id "
            "that is already cached.",
            show_default="the first that a package brings",
        ),
    ] = ""
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")] = 32
    dtype: Annotated[
        DType,
        typer.Option(
            metavar="NAME",
            help="Precision of the weights; auto is the checkpoint's own, for a packaged model its package's choice.",
        ),
    ] = DType.AUTO
    attn: Implementation = Attention.SDPA
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where the model runs: cpu, cuda, cuda:1, ...; 'spread' over all devices, by accelerate.",
            show_default="an accelerator where there is one, else cpu",
        ),
    ] = ""
    allow_download: AllowDownload = False

    def loading(self) -> dict[str, Any]:
        """The arguments of `models.load` besides the name."""
        return {
            "dtype": self.dtype.value,
            "attn": self.attn.value,
            "device": self.device,
            "allow_download": self.allow_download,
        }


def command(options: type[Any], examples: str) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Makes a function of one `options` object a command of one option a field, its errors reported as sentences.

    Fields of the class itself come before those that it shares with others.
    """
    hints = get_type_hints(options, include_extras=True)
    own = [item for item in fields(options) if item.name in vars(options).get("__annotations__", {})]
    shared = [item for item in fields(options) if item not in own]
    parameters = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if item.default is MISSING else item.default,
            annotation=hints[item.name],
        )
        for item in (*own, *shared)
    ]

    def made(function: Callable[[Any], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            function(options(**given))

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.epilog = "[bold]Examples[/bold]\n\n" + examples.strip()  # type: ignore[attr-defined]
        return reports_errors(run)

    return made
