"""Grounds with a texture and no colour of a name: what busy scenes and pages lie on."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

_Pixels = np.ndarray


def textured(kind: str, canvas: int, noise: np.random.Generator) -> Image.Image:
    """The ground `kind`, one of `GROUNDS`, `canvas` pixels square: light enough for dark letters, dull enough for
    colours to stand out."""
    pixels = GROUNDS[kind](canvas, noise)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _tint(noise: np.random.Generator, low: float = 150, high: float = 205) -> _Pixels:
    """[3]: a dull colour."""
    return noise.uniform(low, high) + noise.uniform(-18, 18, 3)


def _clouds(canvas: int, noise: np.random.Generator) -> _Pixels:
    pixels: _Pixels = np.zeros((canvas, canvas, 3)) + _tint(noise)
    for side, strength in ((5, 26), (12, 18), (30, 12)):
        coarse = noise.integers(0, 256, (side, side, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((canvas, canvas), Image.Resampling.BICUBIC), np.float32)
        pixels += (smooth / 127.5 - 1) * strength
    return pixels


def _weave(canvas: int, noise: np.random.Generator) -> _Pixels:
    ys, xs = np.mgrid[0:canvas, 0:canvas]
    across, down = noise.uniform(9, 26, 2)
    threads = np.sin(xs * 2 * math.pi / across) * np.sin(ys * 2 * math.pi / down)
    pixels: _Pixels = _tint(noise) + threads[..., None] * noise.uniform(-26, 26, 3)
    return pixels


def _speckle(canvas: int, noise: np.random.Generator) -> _Pixels:
    grain = int(noise.integers(5, 11))
    side = canvas // grain + 1
    coarse = noise.normal(0, 14, (side, side, 1)) + noise.normal(0, 5, (side, side, 3))
    pixels: _Pixels = _tint(noise) + coarse.repeat(grain, axis=0).repeat(grain, axis=1)[:canvas, :canvas]
    return pixels


def _bricks(canvas: int, noise: np.random.Generator) -> _Pixels:
    height = int(noise.integers(20, 34))
    width = 2 * height + int(noise.integers(0, 14))
    ys, xs = np.mgrid[0:canvas, 0:canvas]
    rows = ys // height
    shifted = xs + (rows % 2) * (width // 2)
    shades = noise.normal(0, 11, (canvas // height + 1, canvas // width + 2, 1)) + noise.normal(0, 4, 3)
    pixels = _tint(noise) + shades[rows, shifted // width]
    joint = (ys % height < 2) | (shifted % width < 2)
    return np.where(joint[..., None], _tint(noise, 120, 220), pixels)


def _pebbles(canvas: int, noise: np.random.Generator) -> _Pixels:
    centres = noise.uniform(0, canvas, (int(noise.integers(70, 130)), 2))
    ys, xs = np.mgrid[0:canvas, 0:canvas]
    distances = (xs[..., None] - centres[:, 0]) ** 2 + (ys[..., None] - centres[:, 1]) ** 2
    nearest = np.partition(distances, 1, axis=-1)[..., :2] ** 0.5
    shades = noise.normal(0, 13, (len(centres), 1)) + noise.normal(0, 6, (len(centres), 3))
    edge = np.clip((nearest[..., 1] - nearest[..., 0]) / 5, 0, 1)[..., None]
    pixels: _Pixels = _tint(noise) + shades[distances.argmin(axis=-1)] - 34 * (1 - edge)
    return pixels


def _paper(canvas: int, noise: np.random.Generator) -> _Pixels:
    ys, xs = np.mgrid[0:canvas, 0:canvas] / canvas - 0.5
    angle = noise.uniform(0, 2 * math.pi)
    shade = (np.cos(angle) * xs + np.sin(angle) * ys)[..., None] * noise.uniform(0, 30)
    pixels: _Pixels = noise.uniform(218, 246) + noise.uniform(-12, 12, 3) + shade
    return pixels


def _ruled(canvas: int, noise: np.random.Generator) -> _Pixels:
    pixels = np.zeros((canvas, canvas, 3)) + noise.uniform(225, 250) + noise.uniform(-8, 8, 3)
    pitch = int(noise.integers(16, 24))
    pixels[int(noise.integers(0, pitch)) :: pitch] -= noise.uniform(25, 50) * np.array([1.0, 0.7, 0.3])
    pixels[:, int(noise.integers(8, 22))] -= np.array([10, 70, 70])
    return pixels


GROUNDS: dict[str, Callable[[int, np.random.Generator], _Pixels]] = {
    "clouds": _clouds, "weave": _weave, "speckle": _speckle, "bricks": _bricks, "pebbles": _pebbles, "paper": _paper,
    "ruled": _ruled,
}  # fmt: skip
