"""The page of `visipruner app`: a picture, a question, one or two methods, and what they keep and save.

`playing` asks the model, `showing` makes pictures, bars, tables and code of what came of it; neither knows the page.
`page` alone needs Gradio (the extra `app`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visipruner.app.playing import Choice, Played, Playground

if TYPE_CHECKING:
    from visipruner.app.page import serve as serve

__all__ = ["Choice", "Played", "Playground", "serve"]


def __getattr__(name: str) -> Any:
    if name == "serve":
        from visipruner.app.page import serve

        return serve
    raise AttributeError(f"module 'visipruner.app' has no attribute {name!r}")
