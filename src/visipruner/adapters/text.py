"""Text decoders called with `inputs_embeds`: the caller marks the visual rows with `visual_mask`."""

from visipruner.adapters.base import Adapter

ADAPTER = Adapter(
    family="text decoder",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    decoder=("model", ""),
    visual="those that `visual_mask` marks",
)
