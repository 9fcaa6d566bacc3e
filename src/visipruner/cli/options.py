"""Options that several commands share: what they are called, their help, their defaults' words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


class Metric(StrEnum):
    """How an analysis measures what is lost."""

    KL = "kl"
    AGREEMENT = "agreement"
    ACCURACY = "accuracy"


class Axis(StrEnum):
    """What budgets can be matched by."""

    TOKENS = "tokens"
    FLOPS = "flops"
    ATTENTION = "attention"


def _or_packaged(name: str) -> str:
    from visipruner.models import packaged

    return name or packaged.default()


ModelName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=_or_packaged,
        help="A model that an installed package brings (see: visipruner list), a folder, or a Hugging Face id that is "
        "already cached.",
        show_default="the first that a package brings",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSONL: image (relative to the file), question, and if known answer or answers, type.",
        show_default="what a packaged model brings",
    ),
]
EvalData = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A JSONL file (image, question, answer or answers, type), the folder of a benchmark as LLaVA's evaluation "
        "keeps it, a question file in it, or easy-vqa.",
        show_default="what a packaged model brings",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the choice of samples.")]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print the results as one JSON document.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")]
Precision = Annotated[
    DType,
    typer.Option(
        metavar="NAME",
        help="Precision of the weights; auto is the checkpoint's own, for a packaged model its package's choice.",
    ),
]
Implementation = Annotated[Attention, typer.Option(help="Attention implementation.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where the model runs: cpu, cuda, cuda:1, ...; 'spread' over all devices, by accelerate.",
        show_default="an accelerator where there is one, else cpu",
    ),
]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", metavar="", help="Let a Hugging Face id be downloaded; it may be many gigabytes."),
]
