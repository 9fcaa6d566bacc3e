"""What must hold of a pruned model, each tried and measured against the plain model's rounding, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from visipruner.checking.prompts import Asked, Side
from visipruner.checking.subject import Subject, opened
from visipruner.engine.calls import cache_name
from visipruner.errors import first_line
from visipruner.pruners.none import NoPruning
from visipruner.pruners.schedule import FixedSchedule
from visipruner.tables import Table

State = Literal["passes", "fails", "unseen", "left out"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was tried. where: the layer, padding side or prompt it was tried at, empty where there is one.
        state: "unseen" where rounding, or the plain model's own differences, hide what was to be seen.
        error: largest difference of logits; `allowed`: how large it may be; `effect`: what pruning itself changes.
        says: in words what differs and where, or why nothing was tried.
    """

    check: str
    where: str
    state: State
    error: float | None = None
    allowed: float | None = None
    effect: float | None = None
    says: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one model.

    Attributes:
        model_type: of its config. mode: "tiny" (its config, shrunk) or "full" (its weights).
        fingerprint: of its config; `versions`: of the packages it was checked with.
        refused: why it cannot be pruned, where it was refused before anything ran.
    """

    model_type: str
    mode: str
    fingerprint: str
    versions: dict[str, str]
    findings: Sequence[Finding] = ()
    refused: str = ""

    @property
    def passed(self) -> bool:
        """Whether something was tried, and nothing failed or went unseen."""
        states = [finding.state for finding in self.findings]
        return not self.refused and "passes" in states and not {"fails", "unseen"} & set(states)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "passed": self.passed}

    def table(self) -> Table:
        rows = [
            [
                f"{finding.check} ({finding.where})" if finding.where else finding.check,
                finding.state,
                _number(finding.error),
                _number(finding.allowed),
                _number(finding.effect),
                finding.says or "-",
            ]
            for finding in self.findings
        ]
        return Table(["check", "result", "error", "allowed", "effect", "what differs"], rows)

    def __str__(self) -> str:
        if self.refused:
            return self.refused
        bad = [finding for finding in self.findings if finding.state in ("fails", "unseen")]
        told = "; ".join(f"{finding.check} {finding.state}: {finding.says}" for finding in bad)
        return f"{self.model_type} ({self.mode}): {'passes' if self.passed else told or 'nothing was tried'}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


ONE, OTHER = Asked((1,), 7), Asked((2,), 11)
TWO, TEXT, VIDEOS = Asked((1, 2), 6), Asked((), 9), Asked((1, 2), 6, is_video=True)
NEW_TOKENS = 5
# How far an error may exceed what the plain model's two attention functions differ by, and the least it may be.
TIMES_NOISE, TIMES_OWN, ROUNDING = 10, 3, 1e-5
SEEN = 3  # an effect is seen that is so many times larger than what is allowed


@dataclass(frozen=True)
class Judge:
    """Attributes: noise, the plain model's own difference between its attention functions; scale, its largest logit."""

    noise: float
    scale: float

    @classmethod
    def of(cls, subject: Subject) -> Judge:
        inputs = subject.prompts.inputs([ONE])
        plain = subject.logits(inputs)
        if not torch.isfinite(plain).all():
            raise ValueError("the plain model's logits are not finite")
        with subject.eager():
            eager = subject.logits(inputs)
        return cls(float((eager - plain).abs().max()), float(plain.abs().max()))

    def of_rows(
        self, check: str, where: str, got: Tensor, expected: Tensor, plain: Tensor | None = None, own: float = 0.0
    ) -> Finding:
        """Logits `[n, vocabulary]` of some rows against what they should be. `plain`: the unpruned ones. `own`: what
        the plain model differs by in the same two ways."""
        error = float((got - expected).abs().max())
        effect = None if plain is None else float((plain - expected).abs().max())
        allowed = max(TIMES_NOISE * self.noise, ROUNDING * max(self.scale, 1.0), TIMES_OWN * own)
        if not error <= allowed:
            row = int((got - expected).abs().amax(-1).argmax())
            why = f"logits of text row {row} of {len(got)} are off by {error:.1e}"
            return Finding(check, where, "fails", error, allowed, effect, why)
        if effect is not None and effect < SEEN * allowed:
            by = f"the plain model itself differs by {own:.1e}" if own > self.noise else "rounding"
            why = f"the effect of pruning is hidden: {by}; try float32"
            return Finding(check, where, "unseen", error, allowed, effect, why)
        return Finding(check, where, "passes", error, allowed, effect)


def run(subject: Subject) -> Iterator[Finding]:
    """Every check, one after the other; an error is a finding, too."""
    judge = Judge.of(subject)
    yield from _tried("rows", "", partial(rows, subject))
    yield from _tried("keep all", "", partial(keep_all, subject))
    yield from _tried("text only", "", partial(text_only, subject))
    for kind, layer in subject.kinds().items():
        yield from _tried("drop = cut", f"layer {layer}: {kind}", partial(drop_is_cut, subject, judge, layer))
    yield from _tried("several images", "", partial(several_images, subject, judge))
    if subject.prompts.videos != "":
        yield from _tried("video", "", partial(video, subject, judge))
    yield from _tried("cache", "", partial(cached, subject, judge))
    yield from _tried("next turn", "", partial(next_turn, subject, judge))
    for side in ("left", "right"):
        yield from _tried("batch", f"padded {side}", partial(batch, subject, judge, side))


def _tried(check: str, where: str, attempt: Callable[[str, str], Finding]) -> Iterator[Finding]:
    try:
        yield attempt(check, where)
    except Exception as error:  # whatever stops a check is what it found
        yield Finding(check, where, "fails", says=f"{type(error).__name__}: {first_line(error)}")


def rows(subject: Subject, check: str, where: str) -> Finding:
    """The rows found are those whose embeddings the model overwrites."""
    inputs = subject.prompts.inputs([TWO])
    given: list[Tensor] = []

    def note(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given.append(kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else [*args, kwargs.get("hidden_states")][0])

    # A decoder that fills its rows by itself shows them where they enter its first layer.
    host = subject.host
    shown = host.layers[0] if host.embedder is host.decoder else host.decoder
    with shown.register_forward_pre_hook(note, with_kwargs=True):
        subject.logits(inputs)
    ids, found = inputs["input_ids"], subject.visual(inputs)
    table = subject.model.get_input_embeddings()
    with torch.no_grad():
        plain = table(ids.clamp(max=table.weight.shape[0] - 1)).to(given[0])
    changed = (given[0] != plain).any(-1)
    wrong = (changed != found)[0].nonzero().flatten().tolist()
    if wrong or not bool(found.any()):
        kind = "overwritten, but not found" if wrong and bool(changed[0, wrong[0]]) else "found, but not overwritten"
        why = f"rows {wrong[:8]} are {kind}" if wrong else "no row is found"
        return Finding(check, where, "fails", says=why)
    return Finding(check, where, "passes", says=f"{int(found.sum())} of {ids.shape[1]} rows")


def _identical(subject: Subject, asked: Asked, check: str, where: str) -> Finding:
    inputs = subject.prompts.inputs([asked])
    plain = subject.logits(inputs)
    with subject.attach(NoPruning() if asked.images else _third(subject, 12, 0)):
        error = float((subject.logits(inputs) - plain).abs().max())
    if error == 0:
        return Finding(check, where, "passes", error, 0.0)
    return Finding(check, where, "fails", error, 0.0, says=f"logits differ from the plain model's by {error:.1e}")


def keep_all(subject: Subject, check: str, where: str) -> Finding:
    """Attached and nothing dropped: the plain model to the last bit."""
    return _identical(subject, ONE, check, where)


def text_only(subject: Subject, check: str, where: str) -> Finding:
    """A prompt without images: the plain model to the last bit."""
    try:
        subject.prompts.inputs([TEXT])
    except ValueError as error:  # some processors want a picture with every text
        return Finding(check, where, "left out", says=first_line(error))
    return _identical(subject, TEXT, check, where)


def _third(subject: Subject, tokens: int, after: int) -> FixedSchedule:
    """A third of the tokens stays after one layer."""
    return FixedSchedule(layers=(after,), keep=(max(1, tokens // 3),))


def _against_cut(subject: Subject, judge: Judge, asked: Asked, after: int, check: str, where: str) -> Finding:
    inputs = subject.prompts.inputs([asked])
    visual = subject.visual(inputs)[0]
    plain = subject.logits(inputs)[0]
    with subject.attach(_third(subject, int(visual.sum()), after)) as handle:
        got = subject.logits(inputs)[0]
        kept = handle.trace[0].kept
    with subject.cutting(inputs, kept):
        expected = subject.logits(inputs)[0]
    return judge.of_rows(check, where, got[~visual], expected[~visual], plain[~visual])


def drop_is_cut(subject: Subject, judge: Judge, layer: int, check: str, where: str) -> Finding:
    """Rows that leave before `layer` are, to all others, attention edges that are cut from there on."""
    return _against_cut(subject, judge, ONE, layer - 1, check, where)


def several_images(subject: Subject, judge: Judge, check: str, where: str) -> Finding:
    """The same with two unlike images in a prompt."""
    return _against_cut(subject, judge, TWO, 0, check, where)


def video(subject: Subject, judge: Judge, check: str, where: str) -> Finding:
    if isinstance(subject.prompts.videos, str):
        return Finding(check, where, "left out", says=subject.prompts.videos)
    return _against_cut(subject, judge, VIDEOS, 0, check, where)


def cached(subject: Subject, judge: Judge, check: str, where: str) -> Finding:
    """An answer that is decoded with a cache is the one without, or where the type cannot decode without one, what one
    forward over prompt and answer with the same edges cut reads."""
    inputs = subject.prompts.inputs([ONE])
    plain = _answer(subject, inputs, True)
    try:
        own = _largest(plain, _answer(subject, inputs, False))
    except (IndexError, ValueError, RuntimeError):
        return _cached_is_cut(subject, judge, inputs, plain[0], check, where)
    with subject.attach(_third(subject, int(subject.visual(inputs).sum()), 0)):
        got, expected = (_answer(subject, inputs, use_cache) for use_cache in (True, False))
    same = _first_words(got, expected)
    found = judge.of_rows(check, where, got[0][:same], expected[0][:same], None, own)
    if found.state == "passes" and same < NEW_TOKENS:
        return Finding(check, where, "fails", found.error, found.allowed, says=f"word {same} of the answer differs")
    # All answers read their first word from the same prompt.
    effect = float((plain[0][:1] - expected[0][:1]).abs().max())
    return Finding(check, where, found.state, found.error, found.allowed, effect, found.says)


def _cached_is_cut(
    subject: Subject, judge: Judge, inputs: dict[str, Any], plain: Tensor, check: str, where: str
) -> Finding:
    with subject.attach(_third(subject, int(subject.visual(inputs).sum()), 0)) as handle:
        got, words = _answer(subject, inputs, True)
        kept = handle.trace[0].kept
    whole = longer(inputs, words[None, :-1])
    with subject.cutting(inputs, kept):
        expected = subject.logits(whole)[0, -NEW_TOKENS:]
    found = judge.of_rows(check, where, got, expected)
    effect = float((plain[:1] - expected[:1]).abs().max())
    return Finding(check, where, found.state, found.error, found.allowed, effect, found.says)


def longer(inputs: dict[str, Any], more: Tensor) -> dict[str, Any]:
    """A prompt with text after it: everything with one entry per row grows."""
    rows, grown = inputs["input_ids"].shape, dict(inputs)
    for name, given in inputs.items():
        if isinstance(given, Tensor) and given.shape == rows:
            ones = torch.ones_like(more) if name == "attention_mask" else torch.zeros_like(more)
            grown[name] = torch.cat([given, more if name == "input_ids" else ones.to(given)], dim=1)
    return grown


def _answer(subject: Subject, inputs: dict[str, Any], use_cache: bool) -> tuple[Tensor, Tensor]:
    """Logits `[n, vocabulary]` and ids `[n]` of a greedy answer."""
    given = {"suppress_tokens": subject.prompts.suppressed(), "output_logits": True, "return_dict_in_generate": True}
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    output = subject.model.generate(**inputs, **length, use_cache=use_cache, **given)
    return torch.stack([opened(step[0]) for step in output.logits]), output.sequences[0, -NEW_TOKENS:]


def _first_words(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> int:
    """How many words two answers read from the same text: those up to the first that differs, it included."""
    differ = (one[1] != other[1]).nonzero().flatten()
    return int(differ[0]) + 1 if len(differ) else len(one[1])


def _largest(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    same = _first_words(one, other)
    return float((one[0][:same] - other[0][:same]).abs().max())


def next_turn(subject: Subject, judge: Judge, check: str, where: str) -> Finding:
    """Further text on the cache of a pruned prompt reads what it reads with the same edges cut."""
    inputs, more = subject.prompts.inputs([ONE]), subject.prompts.more()
    plain = _in_turns(subject, inputs, more)
    with subject.attach(_third(subject, int(subject.visual(inputs).sum()), 0)) as handle:
        got = _in_turns(subject, inputs, more)
        kept = handle.trace[0].kept
    with subject.cutting(inputs, kept):
        expected = (_at_once if subject.host.states else _in_turns)(subject, inputs, more)
    return judge.of_rows(check, where, got, expected, plain)


def _in_turns(subject: Subject, inputs: dict[str, Any], more: Tensor) -> Tensor:
    """`[k, vocabulary]`: logits of further text on the cache of a prompt."""
    with torch.no_grad():
        held = {cache_name(subject.model): DynamicCache(config=subject.host.decoder.config)}
        subject.model(**inputs, **held, use_cache=True)
        given = {"input_ids": more, **held}
        if "token_type_ids" in inputs:
            given["token_type_ids"] = torch.zeros_like(more)
        return opened(subject.model(**given, use_cache=True).logits[0])


def _at_once(subject: Subject, inputs: dict[str, Any], more: Tensor) -> Tensor:
    """The same of a prompt and further text in one go."""
    return subject.logits(longer(inputs, more))[0, -more.shape[1] :]


def batch(subject: Subject, judge: Judge, side: Side, check: str, where: str) -> Finding:
    """Two unlike prompts, padded, read what each reads alone."""
    asked = [ONE, OTHER]
    together = subject.prompts.inputs(asked, side)
    alone = [subject.prompts.inputs([each]) for each in asked]
    tokens = [int(subject.visual(each).sum()) for each in alone]
    real = together["attention_mask"].bool()
    text = [~subject.visual(each)[0] for each in alone]

    def read() -> tuple[Tensor, Tensor]:
        rows = subject.logits(together)
        joined = [rows[number][real[number]][text[number]] for number in range(len(asked))]
        each = [subject.logits(inputs)[0][text[number]] for number, inputs in enumerate(alone)]
        return torch.cat(joined), torch.cat(each)

    plain, plain_alone = read()
    with subject.attach(_third(subject, min(tokens), 0)):
        got, expected = read()
    return judge.of_rows(check, where, got, expected, plain_alone, float((plain - plain_alone).abs().max()))
