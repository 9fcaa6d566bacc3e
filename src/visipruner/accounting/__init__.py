"""What pruning saves, counted in three ways that are never to be mixed, and the memory of the key/value cache.

* `paper`: the paper's formulas. Visual tokens only, multiply-adds called FLOPs; for its percentages.
* `exact`: multiply-adds of the matrix products that a trace says were executed, all rows, any model shape.
* `measured`: FLOPs that torch counted while the model ran. Agrees with `exact` (2 FLOPs per multiply-add) within 1 %.

None of them is time: a kernel can be slow for few operations. `kv` counts bytes. A number quoted from here must say
which of these it is.
"""

from visipruner.accounting.exact import (
    Macs,
    decode_macs,
    dense_decode_macs,
    dense_macs,
    dense_work,
    layer_macs,
    prompt_cut,
    prompt_macs,
    work_macs,
)
from visipruner.accounting.kv import CacheBytes, cache_bytes, dense_kv_bytes, expected_kv_bytes
from visipruner.accounting.measured import FlopCount, count_flops
from visipruner.accounting.paper import (
    LLAVA_1_5_7B,
    LLAVA_1_5_13B,
    LayerSpan,
    PaperModel,
    Schedule,
    cross_attention_macs,
    model_from_trace,
    schedule_from_trace,
    visual_attention_cut,
    visual_layer_macs,
    visual_macs,
    visual_self_attention_macs,
)

__all__ = [
    "LLAVA_1_5_7B",
    "LLAVA_1_5_13B",
    "CacheBytes",
    "FlopCount",
    "LayerSpan",
    "Macs",
    "PaperModel",
    "Schedule",
    "cache_bytes",
    "count_flops",
    "cross_attention_macs",
    "decode_macs",
    "dense_decode_macs",
    "dense_kv_bytes",
    "dense_macs",
    "dense_work",
    "expected_kv_bytes",
    "layer_macs",
    "model_from_trace",
    "prompt_cut",
    "prompt_macs",
    "schedule_from_trace",
    "visual_attention_cut",
    "visual_layer_macs",
    "visual_macs",
    "visual_self_attention_macs",
    "work_macs",
]
