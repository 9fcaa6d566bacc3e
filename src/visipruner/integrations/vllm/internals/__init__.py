"""All of vLLM's insides that this plug-in reaches into, each behind a name of ours.

`tests/vllm/test_internals.py` looks for every one of them, so that a new version of vLLM fails there first.
"""
