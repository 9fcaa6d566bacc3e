"""Serving: visual tokens leave inside the decoder of vLLM. `docs/vllm.md` says how to use it.

plugin     what vLLM calls, and what one engine holds
internals  all of vLLM's insides that are reached into, and nothing else
settings   the method that a user asked for; refusals: what cannot be served
request, step, decoder   one request, one forward of many, and how it runs with fewer rows
counters   what is told to the log and to Prometheus
"""

from __future__ import annotations


def register() -> None:
    """The entry point; imports nothing of vLLM before it is called."""
    from visipruner.integrations.vllm.plugin import register

    register()
