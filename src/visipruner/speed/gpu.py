"""`visipruner bench --check gpu`: whether pruning is right and keeps its promise on a GPU, in a few minutes. On a CPU,
where tests run it in small, what only CUDA can say (its clock, waits, idle time) is None."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from visipruner.accounting import cache_bytes
from visipruner.adapters import adapter_of
from visipruner.checking import checks
from visipruner.checking.prompts import TinyPrompts
from visipruner.checking.subject import Subject as Checked
from visipruner.checking.tiny import shrunk_model
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.engine.calls import cache_name, cache_of
from visipruner.models.shape import ModelShape
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.fastv import FastV
from visipruner.pruners.visipruner import VisiPruner
from visipruner.speed.machine import peak_memory
from visipruner.speed.measure import DENSE, Contender, Run, decoder_work, rows, take_turns
from visipruner.speed.prompt import Prompt, Rows, embedded
from visipruner.speed.scheduled import Schedule
from visipruner.speed.subject import load_config

KERNELS = ("sdpa", "eager", "flex_attention", "flash_attention_2")
TIMED = ("sdpa", "flash_attention_2")
BATCHES = (1, 8)
NEW_TOKENS = 8
WAIT = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Kernel:
    """What was found out about one attention kernel on a tiny model. `wrong`: checks that failed, in words; `left_out`:
    why nothing was tried."""

    name: str
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    left_out: str = ""


def contenders(prompt: Prompt, depth: int) -> list[Contender]:
    """The plain model first. Detection looks at every layer that it would look at, then does as the schedule says, as
    nothing triggers in random weights."""
    schedule = Schedule.for_depth(depth)
    ours = VisiPruner.for_depth(depth)
    two = replace(ours, stages=("middle", "deep"), shallow_end=0)
    fixed: dict[str, Any] = {"filter_layer": schedule.filter, "keep_tokens": schedule.keep, "exit_layer": schedule.exit}
    methods: dict[str, Pruner] = {
        "FastV": FastV(layer=2, keep_ratio=0.5),
        "DivPrune": DivPrune(),
        "VisiPruner, fixed layers": replace(two, **fixed),
        "VisiPruner, fixed layers and shallow stage": replace(ours, **fixed),
        "VisiPruner, detecting": schedule.applied(two, depth),
    }
    return [Contender(DENSE, prompt), *(Contender(name, prompt, pruner) for name, pruner in methods.items())]


# ---- right or wrong --------------------------------------------------------------------------------------------------


def invariants(kernel: str, device: torch.device) -> Kernel:
    """What `visipruner check` tries, on a tiny LLaVA with one attention kernel on a device."""
    model = shrunk_model(load_config("llava-1.5-7b"))
    prompts = TinyPrompts(model)
    model.to(device)
    try:
        if kernel.startswith("flash"):
            model.to(torch.bfloat16)  # the only numbers that it takes
        model.set_attn_implementation({"text_config": kernel})
        found = list(checks.run(Checked(model, replace(adapter_of(model), vision=()), prompts)))
    except (ImportError, ValueError) as error:  # transformers without the kernel's package
        return Kernel(kernel, left_out=str(error).partition("\n")[0])
    wrong = [f"{one.check} {one.where}: {one.says}" for one in found if one.state == "fails"]
    return Kernel(kernel, len(found), wrong)


# ---- how fast --------------------------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds between the device's events before and after `work`, and what that gave."""
    if device.type != "cuda":
        begin = time.perf_counter()
        result = work()
        return time.perf_counter() - begin, result
    event: Any = torch.cuda.Event  # its annotations are not complete
    before, after = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize(device)
    before.record()
    result = work()
    after.record()
    torch.cuda.synchronize(device)
    return float(before.elapsed_time(after)) / 1000, result


def waits_of(work: Callable[[], Any], device: torch.device) -> int | None:
    """How often `work` waited for the device, as torch's own sync debug mode tells it."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(WAIT in str(warning.message) for warning in told)


def busy_seconds(work: Callable[[], Any], device: torch.device) -> float | None:
    """Seconds that kernels ran on the device meanwhile."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize(device)
    return float(sum(event.self_device_time_total for event in profiled.key_averages())) / 1e6


def prefill(model: Any, prompt: Prompt) -> Any:
    """One forward over a prompt, with the logits of its last row."""
    return model(**prompt.inputs, use_cache=True, logits_to_keep=1)


@contextmanager
def running(model: Any, contender: Contender) -> Iterator[Any]:
    """The model as a contender runs it; gives the handle, or None."""
    prompt, pruner = contender.prompt, contender.pruner
    with (
        torch.inference_mode(),
        nullcontext() if pruner is None else attach(model, pruner, prompt.visual_mask) as handle,
    ):
        yield handle


def run_once(model: Any, contender: Contender, device: torch.device) -> Run:
    """Prefill and a few greedy tokens, without the sampling around them."""
    prompt, steps, tokens = contender.prompt, [], []
    with running(model, contender) as handle:
        with peak_memory(device) as peak:
            first, output = seconds_of(partial(prefill, model, prompt), device)
            mask = prompt.inputs["attention_mask"]
            for _ in range(NEW_TOKENS):
                following, cache = output.logits[:, -1:].argmax(-1), cache_of(output)
                tokens.append(following[0])
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                given = {"input_ids": following, "attention_mask": mask, cache_name(model): cache}
                step, output = seconds_of(partial(model, **given), device)
                steps.append(step)
        trace = None if handle is None else handle.trace
        flops, visual = decoder_work(ModelShape.from_config(model.config), prompt, trace)
        kv_bytes = cache_bytes(cache_of(output)).held
    decode = sorted(steps)[len(steps) // 2]
    words = torch.cat(tokens).tolist()
    return Run(first, decode, first + sum(steps), None, None, peak.added, kv_bytes, flops, visual, words)


def point(
    model: Any, size: Sequence[Rows], device: torch.device, rounds: int, tell: Callable[[str], object]
) -> dict[str, Any]:
    """One batch under one attention kernel: all contenders in turns, then what each waits and idles."""
    who = contenders(embedded(model, size), ModelShape.from_config(model.config).num_layers)
    kernel = model.config.get_text_config()._attn_implementation

    def say(what: str) -> None:
        tell(f"{kernel}, {len(size)} at a time, {what}")

    runs, _ = take_turns(model, who, rounds + 1, NEW_TOKENS, on_run=say, run=lambda one: run_once(model, one, device))
    table = rows(who, {name: mine[1:] for name, mine in runs.items()}, {})  # the first round warms up
    for one, row in zip(who, table, strict=True):
        with running(model, one):
            work = partial(prefill, model, one.prompt)
            row["waits"], busy = waits_of(work, device), busy_seconds(work, device)
        row["idle_share"] = None if busy is None else max(0.0, 1 - busy / row["prefill"]["median"])
    return {**size[0].to_dict(), "batch": len(size), "attention": kernel, "rows": table}


def points(
    model: Any,
    kernels: Mapping[str, Kernel],
    visual: int,
    device: torch.device,
    rounds: int,
    tell: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    """Every batch under every timed kernel that works here."""
    for kernel in TIMED:
        if kernel not in kernels or kernels[kernel].left_out:
            continue
        model.set_attn_implementation({"text_config": kernel})
        for batch in BATCHES:
            unlike = [Rows(35 + 5 * number, visual, 13 + 4 * number) for number in range(batch)]
            yield point(model, unlike, device, rounds, tell)
