"""Options, each written once: as a field of a command's class of options, or of `ModelOptions`, which several share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import typer

from visipruner.cli.errors import reports_errors

RULE = (
    "A bare name has the settings that were calibrated for the model, where it brings some, else its published ones "
    "with their layers at the same depth; name:key=value,... its published ones as they are, with what is written."
)


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


def option(default: Any, metavar: str | None, text: str, *names: str, shown: str | bool = True, **more: Any) -> Any:
    """A field of a class of options.

    Args:
        default: MISSING where the option must be given. text: its help. names: on the command line; by default the
            field's own. shown: the default in words, where None stands for it. more: of `typer.Option`.
    """
    made = typer.Option(*names, help=text, metavar=metavar, show_default=shown, **more)
    return dataclasses.field(default=default, metadata={"option": made})


def flag(name: str, text: str) -> Any:
    """An option without a value, off unless it is given."""
    return option(False, "", text, name)


def argument(default: Any, metavar: str, text: str) -> Any:
    """What is told by its place on the command line."""
    return dataclasses.field(
        default=default, metadata={"option": typer.Argument(help=text, metavar=metavar, show_default=False)}
    )


def _or_packaged(name: str) -> str:
    from visipruner.models import packaged

    return name or packaged.default()


def model(text: str) -> Any:
    """`--model`, by default what a package brings."""
    return option("", "NAME", text, callback=_or_packaged, shown="the first that a package brings")


Implementation = Annotated[Attention, typer.Option(help="Attention implementation.")]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", metavar="", help="Let a Hugging Face id be downloaded; it may be many gigabytes."),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print the results as one JSON document.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the choice of samples.")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: str = model(
        "A model that an installed package brings (see: visipruner list), a folder, or a Hugging Face id that is "
        "already cached."
    )
    max_new_tokens: int = option(32, "N", "Longest answer, in tokens.", min=1)
    dtype: DType = option(
        DType.AUTO,
        "NAME",
        "Precision of the weights; auto is the checkpoint's own, for a packaged model its package's choice.",
    )
    attn: Implementation = Attention.SDPA
    device: str = option(
        "",
        "NAME",
        "Where the model runs: cpu, cuda, cuda:1, ...; 'spread' over all devices, by accelerate.",
        shown="an accelerator where there is one, else cpu",
    )
    allow_download: AllowDownload = False

    def loading(self) -> dict[str, Any]:
        return {name: str(getattr(self, name)) for name in ("dtype", "attn", "device")} | {
            "allow_download": self.allow_download
        }


def given(options: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The options that were given, as the library's parameters: of the same name, or `parameter="option"`."""
    every = {**{name: name for name in names}, **renamed}
    values = {parameter: getattr(options, name) for parameter, name in every.items()}
    return {parameter: value for parameter, value in values.items() if value is not None}


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
            annotation=Annotated[hints[item.name], *item.metadata.values()] if item.metadata else hints[item.name],
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
