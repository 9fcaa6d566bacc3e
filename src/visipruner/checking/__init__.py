"""Whether pruning a model is right, tried on the user's own machine: `visipruner.check`, `visipruner check`. What is
dropped must be, to the rest, attention edges that are cut; that a model can be attached to does not say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from visipruner.adapters import adapter_of
from visipruner.adapters.generic import named_ids
from visipruner.checking import checks
from visipruner.checking.checks import Finding, Report
from visipruner.checking.prompts import ProcessorPrompts, Prompts, TinyPrompts
from visipruner.checking.subject import Subject
from visipruner.checking.tiny import shrunk_model
from visipruner.errors import UnsupportedModelError
from visipruner.models import checked


def check(model: Any, processor: Any, *, keep: bool = True) -> Report:
    """Checks a multimodal model with its own weights and processor; minutes for a large one.

    Args:
        model: a stock transformers model. processor: its own, with a chat template.
        keep: whether `attach` on this machine shall know the result.

    A model that cannot be pruned is a report that says why, not an error.
    """

    def prompts(made: Any) -> Prompts:
        return ProcessorPrompts(made, processor, [*processor.tokenizer.all_special_ids, *named_ids(made.config)])

    return _report(model.config, "full", lambda: model.eval(), prompts, keep)


def check_tiny(config: Any, *, keep: bool = True) -> Report:
    """Checks a tiny model of random weights, made from a multimodal model's config, in seconds.

    It has every kind of the config's layers, and features in place of its vision tower, which is not tried. Arguments
    as for `check`.
    """
    return _report(config, "tiny", lambda: shrunk_model(config), TinyPrompts, keep)


def _report(config: Any, mode: str, make: Any, prompts: Any, keep: bool) -> Report:
    about = (config.model_type, mode, checked.config_fingerprint(config), checked.versions())
    findings: list[Finding] = []
    refused = ""
    try:
        model = make()
        adapter = adapter_of(model)
        if mode == "tiny":
            adapter = replace(adapter, vision=())  # towers are not there
        subject = Subject(model, adapter, prompts(model))
        findings = list(checks.run(subject))
    except UnsupportedModelError as error:
        refused = str(error)
    except Exception as error:  # of the plain model: there is nothing to compare with
        findings = [Finding("plain model", "", "fails", says=f"{type(error).__name__}: {error}")]
    report = Report(*about, findings, refused)
    if keep:
        checked.keep(report.to_dict())
    return report


__all__ = ["Finding", "Report", "check", "check_tiny"]
