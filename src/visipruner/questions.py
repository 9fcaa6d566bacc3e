"""Questions that a model can be asked; the others are refused before any work is done."""

from __future__ import annotations

from typing import Any

from visipruner.errors import ConfigError


def check_text(question: str, where: str) -> None:
    """Raises ConfigError for a question without a word, or with half a character; `where` says which it is."""
    if not question.strip():
        raise ConfigError(f'{where} is empty; ask something, as in "What is this?".')
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where} holds half a character (a lone surrogate, at place {error.start + 1}); write it as UTF-8."
        ) from None


def check_signs(processor: Any, question: str, where: str) -> None:
    """Raises ConfigError for a question that holds one of the model's special tokens as text: the model would take
    `<image>` for one picture more, and an end sign for the end of the question."""
    found = [sign for sign in special_tokens(processor) if sign in question]
    if found:
        raise ConfigError(
            f"{where} holds {max(found, key=len)!r}, which this model reads as a sign and not as a word; write it "
            "otherwise, for instance with a space inside."
        )


def special_tokens(processor: Any) -> set[str]:
    """Texts that the processor turns into special tokens, its placeholders of images included."""
    tokenizer = processor.tokenizer
    signs = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    signs |= set(getattr(tokenizer, "all_special_tokens", []))
    placeholders = (getattr(processor, name, None) for name in ("image_token", "video_token", "boi_token", "eoi_token"))
    return {sign for sign in (*signs, *placeholders) if isinstance(sign, str) and sign.strip()}
