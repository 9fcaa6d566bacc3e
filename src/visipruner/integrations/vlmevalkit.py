"""A model for VLMEvalKit, and its `run.py` with that model among those it knows.

python -m visipruner.integrations.vlmevalkit --pretrained FOLDER --method fastv --data MMStar --work-dir out

Options that are not listed by --help are VLMEvalKit's own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image
from vlmeval.vlm.base import BaseModel

from visipruner.integrations.answering import Answerer

_MAX_NEW_TOKENS = 512


class VisiPruned(BaseModel):  # type: ignore[misc]
    """Any supported model with any method; the checkpoint's chat template places the images of a prompt.

    Args:
        pretrained, method, settings, config, dtype, allow_download: as `Answerer` has them.
        max_new_tokens: longest answer; VLMEvalKit leaves that to its models.
    """

    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(self, pretrained: str, max_new_tokens: int = _MAX_NEW_TOKENS, **options: Any) -> None:
        super().__init__()
        self._answerer = Answerer(pretrained, **options)
        self._max_new_tokens = max_new_tokens

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to one prompt, a list of `{"type": "text" or "image", "value": text or path}`."""
        content = [_part(item["type"], item["value"]) for item in message]
        return self._answerer.answer([{"role": "user", "content": content}], self._max_new_tokens).text


def _part(kind: str, value: str) -> dict[str, Any]:
    return (
        {"type": "image", "image": Image.open(value).convert("RGB")} if kind == "image" else {kind: value, "type": kind}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Registers the model in `vlmeval.config.supported_VLM` and gives the other options to VLMEvalKit's run."""
    parser = argparse.ArgumentParser(prog="python -m visipruner.integrations.vlmevalkit", allow_abbrev=False)
    parser.add_argument("--pretrained", required=True, help="a folder, a hub id, or a packaged model's name")
    parser.add_argument("--method", help="as `visipruner eval` takes it; default: visipruner")
    parser.add_argument("--settings", help='of a single method, as JSON: {"keep_tokens": 64}')
    parser.add_argument("--config", metavar="FILE", help="a saved pruner.json instead of both")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", help="where to, as torch names it")
    parser.add_argument("--allow-download", action="store_true", help="let a hub id be downloaded")
    parser.add_argument("--max-new-tokens", type=int, default=_MAX_NEW_TOKENS)
    parser.add_argument("--name", default="visipruner", help="of the model in VLMEvalKit's files")
    ours, theirs = parser.parse_known_args(arguments)
    from vlmeval.config import supported_VLM

    options = vars(ours)
    name = options.pop("name")
    supported_VLM[name] = partial(VisiPruned, options.pop("pretrained"), **options)
    sys.argv = ["run.py", "--model", name, *theirs]
    _run().main()


def _run() -> Any:
    """VLMEvalKit's run.py: in its packages part of `vlmeval`; in its repository beside it, and that must be the
    working directory."""
    return importlib.import_module("vlmeval.run" if importlib.util.find_spec("vlmeval.run") else "run")


if __name__ == "__main__":
    main()
