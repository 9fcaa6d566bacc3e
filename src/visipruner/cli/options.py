"""Options that several commands share: what they are called, their help, their defaults' words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DType(StrEnum):
    """Weights' dtypes; `auto` is the checkpoint's own, and for the small model the faster of the first two here."""

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


ModelName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="'testbed' (the small model that ships, 576 visual tokens; 'testbed-224' has 256), a folder, or a "
        "Hugging Face id that is already cached.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSONL: image (relative to the file), question, and if known answer or answers, type.",
        show_default="the shipped test set, for the testbed",
    ),
]
EvalData = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A JSONL file (image, question, answer or answers, type), the folder of a benchmark as LLaVA's evaluation "
        "keeps it, a question file in it, or easy-vqa.",
        show_default="the shipped test set, for the testbed",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the choice of samples.")]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print the results as one JSON document.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")]
Precision = Annotated[
    DType,
    typer.Option(
        metavar="NAME",
        help="Precision of the weights; auto is the checkpoint's own, for the small model the faster one here.",
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
