"""A model under study: reads prompts densely and runs altered variants of them through its own layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import LogitsProcessor, LogitsProcessorList

from visipruner.adapters import Adapter, adapter_of
from visipruner.analysis.reading import Continuation, Reading, Recording
from visipruner.analysis.rerun import Outcome, Rerun, Variant, outcomes, rows_to_run
from visipruner.contract.layout import VisualRows, check_visual_mask, layouts
from visipruner.engine.attention import QKV, unsupported
from visipruner.engine.calls import bound
from visipruner.engine.host import Host
from visipruner.engine.masks import MaskForm
from visipruner.engine.patch import Attachment, check_free
from visipruner.errors import ConfigError, LayoutError, UnsupportedModelError


class Dictate(LogitsProcessor):  # type: ignore[misc]
    """Makes generation say `tokens`, `[t]` long, whatever the model would rather say."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens, self._said = tokens, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self._tokens[self._said]] = 0
        self._said += 1
        return forced


PLAINLY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
"""Greedy decoding of what the model itself holds most likely: a checkpoint's own penalties would say something else
than the logits by which an altered run is judged."""


def _generated(model: Any, inputs: Mapping[str, Any], max_new_tokens: int, dictated: Tensor | None) -> Any:
    length, forced = (max_new_tokens, []) if dictated is None else (len(dictated), [Dictate(dictated)])
    return model.generate(**inputs, **PLAINLY, max_new_tokens=length, logits_processor=LogitsProcessorList(forced))


@torch.no_grad()
def greedy_logprobs(
    model: Any, inputs: Mapping[str, Any], max_new_tokens: int, dictated: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `generate` says to one prompt, or is made to say, and how likely it held every token.

    Args:
        dictated: `[t]` long, said instead of the model's own answer.

    Returns:
        tokens `[t]` long, and log-probabilities `[t, vocabulary]` float32 of the model itself, on the CPU.
    """
    out = _generated(model, inputs, max_new_tokens, dictated)
    logits = torch.cat([part.float().cpu() for part in out.logits])
    return out.sequences[0, -len(out.logits) :].cpu(), logits.log_softmax(-1)


class Probe:
    """A stock model with its attention under observation, until `close` (or the end of a `with` block).

    The model computes what it always computes; generating with it goes on working.

    Args:
        model: a multimodal model, or a text decoder with a head, called with `inputs_embeds`.
        visual_mask: `[1, n]` bool, visual rows of the prompts to come; only where the model cannot tell.
        adapter: describes a family this library does not know.

    Raises:
        UnsupportedModelError: the family is not supported. VisiPrunerError: something is attached to the model already.
    """

    def __init__(self, model: Any, visual_mask: Any = None, *, adapter: Adapter | None = None) -> None:
        self.model = model
        self._adapter = adapter or adapter_of(model)
        self.host = Host.of(model, self._adapter)
        if self.host.form in (MaskForm.LENGTHS, MaskForm.BLOCKS):  # variants are run by masks of single rows
            raise unsupported(self.host.implementation, ("sdpa", "eager"))
        if self.host.states:
            raise UnsupportedModelError(
                f"Some layers of {self._adapter.family} pass a state from row to row and have no attention edges to "
                "look at or to cut; analyse a model whose layers all have attention."
            )
        self.visual_mask = None if visual_mask is None else check_visual_mask(visual_mask)
        check_free(self.host)
        self._recording: Recording | None = None
        self._rerun: Rerun | None = None
        self._found: VisualRows | None = None
        self._closed = torch.empty(0, dtype=torch.long)  # ids
        self._attachment = Attachment(self.host, self, self._install())

    @property
    def num_layers(self) -> int:
        return len(self.host.layers)

    def close(self) -> None:
        """Gives the model back as it was. Safe to call twice."""
        self._attachment.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- dense reading ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(
        self,
        inputs: Mapping[str, Any],
        tokenizer: Any = None,
        *,
        right: str | Sequence[int] | None = None,
        judge: Callable[[str, str], bool] | None = None,
        max_new_tokens: int = 32,
    ) -> Reading:
        """Reads one prompt, lets the model answer greedily, and keeps every layer's states.

        Args:
            inputs: what `model.generate` takes, one example without padding.
            tokenizer: decodes the answer and encodes `right`; not needed when `right` is token ids or None.
            right: the right answer, if known: text, or token ids with an end token (any, where the model has several).
            judge: says whether the first text answers as well as the second; by default answers are right when their
                tokens are equal. Needs `right` as text.

        Raises:
            LayoutError: no visual rows, several examples, or padding.
            ConfigError: `right` has no token: it is empty, and the model has no end token to follow it.
            UnsupportedModelError: the model's logits are not what its final norm and head give.
        """
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask.bool().all()):
            raise LayoutError("A reading takes one prompt without padding; pass examples one by one.")
        recording, out = self._generate(inputs, max_new_tokens)
        prompt, answered = recording.lengths[0], sum(recording.lengths)
        tokens = out.sequences[0, -len(out.logits) :].cpu()
        end = self.model.generation_config.eos_token_id
        ends = [] if end is None else end if isinstance(end, list) else [end]
        wanted = _encode(right, tokenizer, ends, tokens, out.logits[0][0])
        is_right = None if wanted is None else _same_answer(tokens.tolist(), wanted.tolist())
        if judge is not None and isinstance(right, str):
            is_right = judge(_decode(tokens, tokenizer), right)
        other = wanted if not is_right else None
        if other is not None and len(other) > 1:
            recording.add_chain(self._generate(inputs, max_new_tokens, other)[0])
        layout = self._layout(prompt)
        answer_rows = torch.arange(prompt - 1, prompt - 1 + len(tokens))
        answer = Continuation(tokens, answer_rows, _decode(tokens, tokenizer))
        known = answer if wanted is not None else None
        if other is not None:
            rows = torch.cat([answer_rows[:1], torch.arange(answered, answered + len(other) - 1)])
            known = Continuation(other, rows, _decode(other, tokenizer))
        layers, final = recording.states()
        given = torch.cat([part.float().cpu() for part in out.logits])
        self._closed = (given <= torch.finfo(self.model.dtype).min / 2).all(0).nonzero().flatten()
        logprobs = self.unembed(final[answer_rows]).log_softmax(-1)
        self._check_head(logprobs, given)
        return Reading(layers, final, layout, prompt, answer, known, is_right, logprobs)

    def _generate(
        self, inputs: Mapping[str, Any], max_new_tokens: int, dictated: Tensor | None = None
    ) -> tuple[Recording, Any]:
        """Greedy generation, recorded."""
        recording = self._recording = Recording(self.num_layers)
        self._found = None
        try:
            return recording, _generated(self.model, inputs, max_new_tokens, dictated)
        finally:
            self._recording = None

    def _layout(self, prompt: int) -> Any:
        found = self._found
        if self.visual_mask is not None:
            found = VisualRows(self.visual_mask)
        if found is None or not bool(found.mask.any()):
            raise LayoutError("The prompt has no visual rows; pass an image, or Probe(model, visual_mask=mask).")
        if found.mask.shape != (1, prompt):
            raise LayoutError(f"The visual mask has shape {list(found.mask.shape)} but the prompt has {prompt} rows.")
        return layouts(VisualRows(found.mask.cpu(), found.images), torch.ones(1, prompt, dtype=torch.bool))[0]

    def _check_head(self, logprobs: Tensor, logits: Tensor) -> None:
        given = logits.log_softmax(-1).index_fill(-1, self._closed, 0)
        off = (given - logprobs.index_fill(-1, self._closed, 0)).abs().max()
        if not off < 0.05 * max(1.0, float(given.abs().max())):
            raise UnsupportedModelError(
                f"The logits of {type(self.model).__name__} are not what its final norm and output embeddings give "
                f"(off by {float(off):.2g}); this model cannot be analysed."
            )

    # ---- altered runs -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rerun(
        self,
        reading: Reading,
        variants: Sequence[Variant],
        rows: Sequence[Tensor] | None = None,
        context: Tensor | None = None,
    ) -> list[Outcome]:
        """Runs variants of a reading in one growing batch and compares their answers with the dense one.

        Args:
            rows: per variant the rows to run, all equally many; by default those that can differ.
            context: with `rows`, the rows that are seen but not run; others do not exist.
        """
        if not variants:
            return []
        if rows is None:
            shared = rows_to_run(reading, variants)
            rows, context = [shared] * len(variants), torch.arange(int(shared[0]))
        assert context is not None
        self._rerun = Rerun(self.host, reading, variants, rows, context)
        try:
            final = self._rerun.run()
        finally:
            self._rerun = None
        return outcomes(reading, final, rows, self.unembed)

    @torch.no_grad()
    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` float32 of states `[..., d]` leaving a layer: the logit lens."""
        norm = getattr(self.host.decoder, self._adapter.final_norm)
        logits = self.head(norm(hidden)).float()
        cap = getattr(self.host.decoder.config, "final_logit_softcapping", None)
        return (torch.tanh(logits / cap) * cap if cap else logits).cpu()

    def head(self, hidden: Tensor) -> Tensor:
        """The output embeddings alone, without the final norm; `[..., vocabulary]`.

        Words that the model closes with the lowest number (those for Chameleon's pictures) are closed here, too.
        """
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits.index_fill(-1, self._closed.to(logits.device), torch.finfo(logits.dtype).min)

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def _install(self) -> Iterator[RemovableHandle]:
        if self.host.embedder is not None and self._adapter.locate is not None:
            yield self.host.embedder.register_forward_pre_hook(self._locate, with_kwargs=True)
        for layer, module in enumerate(self.host.layers):
            yield module.register_forward_pre_hook(partial(self._enter, layer), with_kwargs=True)
            yield module.register_forward_hook(partial(self._leave, layer))

    def _locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording is not None and not self._recording.lengths:
            assert self._adapter.locate is not None
            call = bound(module, args, kwargs)
            mask = self._adapter.locate(module, call)
            self._found = None if mask is None else self._adapter.arranged(module, call, mask)

    def _enter(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording is None:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[0] != 1:
            raise LayoutError(f"A reading takes one prompt, got {hidden.shape[0]}; pass them one by one.")
        if layer == 0:
            self._recording.begin_segment(hidden.shape[1])
        self._recording.layers[layer].enter(hidden, kwargs)

    def _leave(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._recording is not None:
            self._recording.layers[layer].output.append((output[0] if isinstance(output, tuple) else output)[0])

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Called by the attention of every layer."""
        if self._rerun is not None:
            return self._rerun.attend(layer, module, qkv, kwargs)
        if self._recording is not None:
            self._recording.layers[layer].attend(*qkv, mask, kwargs)
        return self.host.kernel(module, *qkv, mask, **kwargs)


def _encode(
    right: str | Sequence[int] | None, tokenizer: Any, ends: Sequence[int], said: Tensor, first_logits: Tensor
) -> Tensor | None:
    """Token ids of the right answer with an end; begun with a space or not, as the model would rather begin it.

    Any of `ends` ends an answer as well as another: where `said` has one, it is the right answer's too.
    """
    if right is None:
        return None
    if isinstance(right, str):
        spellings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (right, f" {right}")]
        ids: list[int] = max(filter(None, spellings), key=lambda tokens: float(first_logits[tokens[0]]), default=[])
        ids = [*ids, *ends[:1]]
    else:
        ids = list(right)
    if not ids:
        raise ConfigError(
            "The right answer has no token, not even one that ends it; give an answer of one token at least, or "
            "right=None."
        )
    if ids[-1] in ends and int(said[-1]) in ends:
        ids[-1] = int(said[-1])
    return torch.tensor(ids, dtype=torch.long)


def _same_answer(given: list[int], wanted: list[int]) -> bool:
    """An answer cut off by its allowed length is right as far as it goes."""
    return given == wanted[: len(given)] if len(given) < len(wanted) else given == wanted


def _decode(tokens: Tensor, tokenizer: Any) -> str:
    return "" if tokenizer is None else tokenizer.decode(tokens, skip_special_tokens=True).strip()
