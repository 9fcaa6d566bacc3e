"""Assembles the testbed model once into the user's cache directory, and loads it from there."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from visipruner.files import sha256_of
from visipruner_testbed.assembly.sources import language_weights, vision_weights

MANIFEST = "manifest.json"
IMAGE_SIZE = 336
"""Side of a picture in pixels: 24 x 24 visual tokens of 14 x 14 pixels. 224 is the faster preset."""
# Raise when the assembly or its manifest changes in a way that hashes of its inputs do not show.
_FORMAT = 3
_ABANDONED_SECONDS = 3600
_UNUSED_SECONDS = 30 * 24 * 3600


def cache_root(cache_dir: Path | str | None = None) -> Path:
    """`cache_dir`, else $VISIPRUNER_CACHE, else $XDG_CACHE_HOME/visipruner, else ~/.cache/visipruner."""
    chosen = cache_dir or os.environ.get("VISIPRUNER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "visipruner"


def ensure_built(image_size: int = IMAGE_SIZE, cache_dir: Path | str | None = None, progress: bool = True) -> Path:
    """The folder of the assembled model, in the usual Hugging Face format; built at first use (about half a minute,
    650 MB).

    `image_size` 336 gives 576 visual tokens, 224 gives 256. Other inputs have another folder, so that versions of the
    library side by side do not take each other's; those unused for a month go. A folder whose files have changed is
    built again: their sizes and times say so, and where only a time is another, their content. The build happens in a
    temporary folder that is renamed at the end, so an interrupted or concurrent build never leaves half a model.

    Raises MissingWeightsError without the weight packages, ConfigError for an image size that is no multiple of 14.
    """
    from visipruner_testbed.assembly.trained import TRAINED_FILE, WEIGHTS_FOLDER

    trained = WEIGHTS_FOLDER / TRAINED_FILE
    inputs = {
        "format": _FORMAT,
        "image_size": image_size,
        "language": sha256_of(language_weights()),
        "vision": sha256_of(vision_weights()),
        "trained": sha256_of(trained) if trained.exists() else "missing",
    }
    root = cache_root(cache_dir)
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = root / f"testbed-{image_size}-{digest[:8]}"
    if not _is_current(folder, inputs):
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        _remove_unused(root)
        part = Path(tempfile.mkdtemp(prefix=f"testbed-{image_size}.part-", dir=root))
        try:
            _build(part, image_size, trained, progress)
            _write_manifest(part, inputs)
            _publish(part, folder, inputs)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):  # a cache that others filled may be there to read only
        os.utime(folder / MANIFEST)
    return folder


def load(
    dtype: torch.dtype | str = torch.float32, attn_implementation: str = "sdpa", image_size: int = IMAGE_SIZE
) -> tuple[Any, Any]:
    """The testbed as (LlavaForConditionalGeneration in evaluation mode, LlavaProcessor), built first where needed.

    `dtype="auto"` is bfloat16 where this processor multiplies it faster, else float32.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from visipruner.models.precision import faster_dtype

    if dtype == "auto":
        dtype = faster_dtype()

    folder = ensure_built(image_size=image_size)
    with _quiet_bars():
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation=attn_implementation
        )
    return model.eval(), AutoProcessor.from_pretrained(folder)


def _is_current(folder: Path, inputs: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = [(folder / name, built) for name, built in manifest["files"].items()]
        return bool(manifest["inputs"] == inputs) and all(_is_as_built(path, **built) for path, built in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_as_built(path: Path, size: int, modified: int, sha256: str) -> bool:
    state = path.stat()
    if state.st_size != size:
        return False
    if state.st_mtime_ns == modified:
        return True
    if sha256_of(path) != sha256:
        return False
    with suppress(OSError):  # a copy of what was built, which need not be read again
        os.utime(path, ns=(state.st_atime_ns, modified))
    return True


def _build(part: Path, image_size: int, trained: Path, progress: bool) -> None:
    from visipruner_testbed.assembly.llava import assemble
    from visipruner_testbed.assembly.trained import fold_trained, load_trained

    # On a terminal a bar; elsewhere one line, so that a log does not fill with redraws.
    bar = tqdm(total=3, desc="building the testbed model", disable=None if progress else True, leave=False)
    if progress and not sys.stderr.isatty():
        print("Building the testbed model once (about half a minute)...", file=sys.stderr)
    with bar, _quiet_bars():
        state = load_trained(trained)
        bar.update()
        assembled = assemble(image_size)
        fold_trained(assembled.model, state)
        bar.update()
        assembled.model.save_pretrained(part)
        assembled.processor.save_pretrained(part)
        bar.update()


def _write_manifest(part: Path, inputs: dict[str, Any]) -> None:
    files = {}
    for path in sorted(part.iterdir()):
        state = path.stat()
        files[path.name] = {"size": state.st_size, "modified": state.st_mtime_ns, "sha256": sha256_of(path)}
    (part / MANIFEST).write_text(json.dumps({"inputs": inputs, "files": files}, indent=1))


def _publish(part: Path, folder: Path, inputs: dict[str, Any]) -> None:
    part.chmod(0o755)  # mkdtemp makes it private
    if folder.exists() and not _is_current(folder, inputs):
        old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
        folder.rename(old / "stale")
        shutil.rmtree(old, ignore_errors=True)
    try:
        part.rename(folder)
    except OSError:
        # Another process may have finished the same build meanwhile; theirs is as good.
        if not _is_current(folder, inputs):
            raise


def _remove_abandoned(root: Path) -> None:
    for leftover in root.glob("testbed-*.part-*"):
        if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def _remove_unused(root: Path) -> None:
    for manifest in root.glob(f"testbed-*/{MANIFEST}"):
        if time.time() - manifest.stat().st_mtime > _UNUSED_SECONDS:
            shutil.rmtree(manifest.parent, ignore_errors=True)


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which are restored afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
