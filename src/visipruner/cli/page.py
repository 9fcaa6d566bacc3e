"""`visipruner app`: its options; the page itself lies in `visipruner.app`."""

from __future__ import annotations

from dataclasses import dataclass

from visipruner.cli.console import Status, output
from visipruner.cli.options import ModelOptions, command, option

EXAMPLES = """
visipruner app

visipruner app --model ~/models/llava-1.5-7b-hf --dtype bfloat16 --port 8000
"""


@dataclass(frozen=True, kw_only=True)
class AppOptions(ModelOptions):
    host: str = option(
        "127.0.0.1", "NAME", "Where to listen. Whoever reaches it can use the model: 0.0.0.0 is everybody."
    )
    port: int | None = option(None, "N", "The port.", min=1, max=65535, shown="the first free one from 7860 on")


@command(AppOptions, EXAMPLES)
def app(options: AppOptions) -> None:
    """Open a page to play on: your picture, a question, one or two methods, what they keep in which layer and save."""
    from visipruner.app import serve  # also says that Gradio is missing, before the model loads

    serve(
        options.model,
        options.loading(),
        host=options.host,
        port=options.port,
        max_new_tokens=options.max_new_tokens,
        ready=lambda address: output().print(f"Open {address} in a browser; Ctrl-C ends it.", soft_wrap=True),
        progress=Status(),
    )
