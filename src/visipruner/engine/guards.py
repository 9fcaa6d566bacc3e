"""What a pruned model must not be put through: ways of `generate` that would judge a prompt by the wrong last row are
refused, so is pickling, which would leave the engine behind, and compilers are kept out of the decoder, whose row
counts differ from prompt to prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from visipruner.contract.pruner import Pruner
from visipruner.engine.attention import uncompiled
from visipruner.engine.host import Host
from visipruner.engine.patch import Replaced
from visipruner.errors import UnsupportedModelError


class Refusals(Replaced):
    """Stands in front of methods of one model and of its decoder until `remove`.

    Assisted decoding (an assistant model, prompt lookup) appends guesses to the prompt before it is read, so its last
    row is a guess; it also crops the prompt's cache. Chunked prefill reads the prompt in parts. Under `torch.compile`
    the decoder runs as it is, the rest of the model compiled.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        for name, refusal in _REFUSALS.items():
            if hasattr(type(model), name):
                self.replace(model, name, refusal)
        # The first thing to be pickled of a model with ours in it.
        self._unpickled = model.register_forward_pre_hook(_Unpicklable(), prepend=True)
        self.replace(decoder, "forward", uncompiled(_call))

    def remove(self) -> None:
        super().remove()
        self._unpickled.remove()


class _Unpicklable:
    """A hook that does nothing, and says why the model it belongs to cannot be pickled."""

    def __call__(self, *_: Any) -> None:
        """Called by the model before it runs."""

    def __deepcopy__(self, memo: Any) -> _Unpicklable:
        return self

    def __reduce__(self) -> Any:
        raise UnsupportedModelError(
            "A model with a pruner attached cannot be pickled; call .remove() on its handle first, or save the model "
            "with save_pretrained."
        )


def _call(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return method(*args, **kwargs)


def _no_assistant(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise UnsupportedModelError(
        "Assisted decoding does not work while visual tokens are pruned, as guesses would be read as the end of the "
        "prompt; leave out assistant_model and prompt_lookup_num_tokens, or remove the pruner."
    )


def _no_chunks(method: Callable[..., Any], input_ids: Any, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
    if generation_config.prefill_chunk_size is not None:
        raise UnsupportedModelError(
            "A prompt that is read in chunks cannot be pruned, as its last row comes after the image was read; leave "
            "out prefill_chunk_size, or remove the pruner."
        )
    return method(input_ids, generation_config, *args, **kwargs)


_REFUSALS = {
    "_get_candidate_generator": _no_assistant,
    "_prefill": _no_chunks,
}


def check_cache(host: Host, pruner: Pruner) -> None:
    """Raises UnsupportedModelError where a method would change cached keys or values that the model does not cache."""
    routed = any(not pruner.routing(layer).is_plain for layer in range(len(host.layers)))
    if routed and host.caches_latents:
        raise UnsupportedModelError(
            f"The cache of {host.adapter.family} holds latents, not the keys and values that {pruner.name} with these "
            "settings changes; choose a method that only drops tokens, or for visipruner stages without 'shallow'."
        )


def stock_model(model: Any) -> nn.Module:
    """The transformers model inside what `torch.compile` and peft put around it.

    Raises UnsupportedModelError for anything else around it, and for a model without its head: `generate` belongs to
    the model around it, which then could not refuse what would prune the wrong rows.
    """
    found: Any = model
    while True:
        if isinstance(getattr(found, "_orig_mod", None), nn.Module):  # torch.compile
            found = found._orig_mod
        elif isinstance(found, nn.Module) and callable(getattr(found, "get_base_model", None)):  # peft
            found = cast(Any, found).get_base_model()
        else:
            break
    name = type(found).__name__
    if not isinstance(found, nn.Module):
        raise UnsupportedModelError(
            f"A pruner is attached to a model, not to a {name}; load one with "
            "AutoModelForImageTextToText.from_pretrained."
        )
    if not hasattr(found, "config"):
        raise UnsupportedModelError(
            f"{name} is no transformers model; give the one inside it"
            f"{' (its .module)' if hasattr(found, 'module') else ''}."
        )
    if _is_headless(found):
        raise UnsupportedModelError(
            f"{name} is a model without its head, whose generate could not be kept from reading a prompt in parts; "
            "give the whole model, loaded with AutoModelForImageTextToText or AutoModelForCausalLM (the parts that you "
            "call alone are pruned with it)."
        )
    return found


def _is_headless(model: Any) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return can_generate is not None and not can_generate() and model.base_model is model
