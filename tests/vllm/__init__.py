"""Tests that run vLLM; `make vllm-test` installs it into an environment of its own. Elsewhere none is collected."""
