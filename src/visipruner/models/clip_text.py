"""The text side of a CLIP model: how like a question the patches of its vision tower are."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visipruner.errors import ConfigError


class ClipText(nn.Module):
    """What multimodal LLMs leave out of a CLIP model when they take its vision tower.

    Args:
        model: a `CLIPModel`. tokenizer: that belongs to it.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer, self._longest = tokenizer, model.config.text_config.max_position_embeddings
        self.text_model, self.text_projection = model.text_model, model.text_projection
        self.norm, self.visual_projection = model.vision_model.post_layernorm, model.visual_projection

    @torch.no_grad()
    def likeness(self, question: str, features: Tensor) -> Tensor:
        """`[p]` float32: cosine of every patch to the question, mean over the parts that CLIP can read.

        As CDPruner's released code does: the question between CLIP's two tokens is cut every 77 tokens (the length that
        CLIP reads), and the last part is filled with zeros that are masked. Later parts thus have no begin token.
        `features`: `[p, d_vision]`, patches as a layer of the tower gave them. Raises ConfigError where the tower is
        not this model's.
        """
        width = self.visual_projection.in_features
        if features.shape[-1] != width:
            raise ConfigError(
                f"text_encoder belongs to a vision tower of width {width}, this one has {features.shape[-1]}; name the "
                "CLIP model that the tower was taken from."
            )
        self.to(features.device)
        patches = functional.normalize(self.visual_projection(self.norm(features.float())), dim=-1)
        ids, mask = self._parts(question)
        read = self.text_model(input_ids=ids, attention_mask=mask).pooler_output
        words = functional.normalize(self.text_projection(read), dim=-1)
        return (patches @ words.T).mean(-1)

    def _parts(self, question: str) -> tuple[Tensor, Tensor]:
        """`[parts, 77]` long: the question's tokens with CLIP's own two around them, zeros after; and what is no zero
        of these."""
        words = self._tokenizer(question, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([self._tokenizer.bos_token_id, *words, self._tokenizer.eos_token_id])
        padded = functional.pad(torch.stack([ids, torch.ones_like(ids)]), (0, -len(ids) % self._longest))
        parts = padded.view(2, -1, self._longest).to(self.text_projection.weight.device)
        return parts[0], parts[1]


@lru_cache(maxsize=1)
def clip_text(name: str) -> ClipText:
    """The text side of a CLIP model in a folder, or of one that is cached, in float32. Raises ConfigError."""
    from transformers import AutoConfig, AutoTokenizer, CLIPModel

    try:
        kind = AutoConfig.from_pretrained(name, local_files_only=True).model_type
        if kind != "clip":
            raise ConfigError(f"text_encoder {name} is a {kind}; only a CLIP model has the text side that is needed.")
        model = CLIPModel.from_pretrained(name, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except OSError as error:
        raise ConfigError(f"text_encoder {name} cannot be read: give the folder of a CLIP model ({error}).") from error
    return ClipText(model, tokenizer).eval()
