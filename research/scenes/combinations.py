"""Pairs that are never drawn together for training, so that a test can ask for what was only seen apart: a tenth of
all things at places, and of all shapes in colours."""

import zlib

_EASY_VQA_SHAPES = ("circle", "triangle")
_EASY_VQA_COLORS = ("black", "blue", "brown", "gray", "green", "red", "yellow")


def is_held_out(name: str, with_what: str) -> bool:
    """Whether this thing at this place ("cat", "top left"), or this shape in this colour ("star", "red"), is kept for
    the test."""
    return zlib.crc32(f"{name}/{with_what}".encode()) % 10 == 0


def is_unseen(name: str, with_what: str) -> bool:
    """Whether no training picture at all has the pair: easy-VQA's, which are no scenes, have circles and triangles in
    most colours."""
    in_easy_vqa = name in _EASY_VQA_SHAPES and with_what in _EASY_VQA_COLORS
    return is_held_out(name, with_what) and not in_easy_vqa
