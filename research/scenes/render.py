"""Turns a `Scene` into pixels, and says which item each pixel shows."""

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from research.scenes.grounds import GROUNDS, textured
from research.scenes.photographs import FOLDER
from research.scenes.scene import Background, Item, Scene
from research.scenes.vocabulary import COLORS, OBJECTS, UNSEEN_OBJECTS

CANVAS = 336
BACKGROUND_OWNER = -1
SIGN_HEIGHT = 0.62
"""Of a sign's width."""
_FONTS = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "mono": "DejaVuSansMono-Bold.ttf",
    "serif": "DejaVuSerif-Bold.ttf",
    "times": "STIXGeneralBol.ttf",
}


class EmojiArt:
    """Emoji pictures under `root/<style>/<code point>.png|webp`, loaded once each.

    Raises FileNotFoundError with the command that fetches them when `root` does not hold them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def picture(self, style: str, name: str) -> Image.Image:
        """The RGBA picture of an object name; a photograph's style is its file."""
        if style.startswith(f"{FOLDER}/"):
            return _load_picture(self.root, *style.rsplit("/", 1))
        code = OBJECTS.get(name) or UNSEEN_OBJECTS[name]
        return _load_picture(self.root, style, code)


@lru_cache(maxsize=2048)
def _load_picture(root: Path, style: str, code: str) -> Image.Image:
    for suffix in (".png", "-fe0f.png", ".webp", "-fe0f.webp"):
        path = root / style / f"{code}{suffix}"
        if path.exists():
            picture = Image.open(path).convert("RGBA")
            box = picture.getbbox()
            return picture.crop(box) if box else picture
    stamps = " --stamps" if style.startswith(FOLDER) else ""
    raise FileNotFoundError(
        f"no picture {code} of style {style!r} under {root}: run `python -m research fetch {root}{stamps}` first"
    )


def render(scene: Scene, art: EmojiArt, canvas: int = CANVAS) -> tuple[Image.Image, np.ndarray]:
    """Draw a scene.

    Returns:
        The RGB picture of `canvas` x `canvas` pixels, and an int array [canvas, canvas] with the index of the item
        each pixel shows, -1 for the background.
    """
    noise = np.random.default_rng(scene.noise_seed)
    picture = _draw_background(scene.background, canvas, noise)
    owner = np.full((canvas, canvas), BACKGROUND_OWNER, dtype=np.int64)
    for index, item in enumerate(scene.items):
        layer = _draw_item(item, art, canvas)
        left, top = round(item.x * canvas - layer.width / 2), round(item.y * canvas - layer.height / 2)
        picture.paste(layer, (left, top), layer)
        _claim(owner, layer, left, top, index, whole_box=item.kind in ("text", "sign"))
    if scene.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(scene.blur))
    if scene.noise:
        pixels = np.asarray(picture, dtype=np.float32) + noise.normal(0, scene.noise, (canvas, canvas, 3))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return picture, owner


def _claim(owner: np.ndarray, layer: Image.Image, left: int, top: int, index: int, whole_box: bool) -> None:
    # A text owns its whole box: the gaps between letters belong to the word.
    canvas = owner.shape[0]
    solid = (np.asarray(layer.getchannel("A")) > 100) | whole_box
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + layer.width, canvas), min(top + layer.height, canvas)
    if x1 > x0 and y1 > y0:
        owner[y0:y1, x0:x1][solid[y0 - top : y1 - top, x0 - left : x1 - left]] = index


def _draw_background(background: Background, canvas: int, noise: np.random.Generator) -> Image.Image:
    if background.kind in GROUNDS:
        return textured(background.kind, canvas, noise)
    if background.color is None:
        coarse = noise.integers(0, 256, (int(noise.integers(2, 7)), int(noise.integers(2, 7)), 3)).astype(np.uint8)
        return Image.fromarray(coarse).resize((canvas, canvas), Image.Resampling.BICUBIC)
    base = np.array(COLORS[background.color], dtype=np.float32) + noise.normal(0, 6, 3)
    ramp = np.zeros((canvas, canvas), dtype=np.float32)
    if background.kind != "flat":
        angle = noise.uniform(0, 2 * math.pi)
        ys, xs = np.mgrid[0:canvas, 0:canvas] / canvas - 0.5
        ramp = np.cos(angle) * xs + np.sin(angle) * ys
        if background.kind == "stripes":
            ramp = np.sign(np.sin(ramp * noise.uniform(20, 70))) * 0.35
    pixels = base + ramp[..., None] * 50
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_item(item: Item, art: EmojiArt, canvas: int) -> Image.Image:
    side = max(8, round(item.size * canvas))
    if item.kind == "emoji":
        layer = art.picture(item.style, item.name)
        scale = side / max(layer.size)
        layer = layer.resize(
            (max(1, round(layer.width * scale)), max(1, round(layer.height * scale))), Image.Resampling.LANCZOS
        )
    elif item.kind == "shape":
        layer = _draw_shape(item, side)
    elif item.kind == "sign":
        layer = _draw_sign(item, side)
    elif item.kind in ("plate", "tile"):
        layer = _draw_shape(replace(item, name="circle" if item.kind == "plate" else "square"), side)
    else:
        layer = _draw_text(item, side)
    if item.flip:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return layer.rotate(item.angle, expand=True, resample=Image.Resampling.BICUBIC) if item.angle else layer


def _draw_shape(item: Item, side: int) -> Image.Image:
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    fill = COLORS[item.color or "black"]
    last = side - 1
    if item.name == "circle":
        draw.ellipse((0, 0, last, last), fill=fill)
    elif item.name == "square":
        draw.rectangle((0, 0, last, last), fill=fill)
    elif item.name == "triangle":
        draw.polygon([(last / 2, 0), (last, last), (0, last)], fill=fill)
    elif item.name == "star":
        corners = [(0.5 if k % 2 == 0 else 0.21, math.pi * (k / 5 - 0.5)) for k in range(10)]
        draw.polygon([(last * (0.5 + r * math.cos(a)), last * (0.5 + r * math.sin(a))) for r, a in corners], fill=fill)
    else:
        arm = side // 3
        draw.rectangle((arm, 0, last - arm, last), fill=fill)
        draw.rectangle((0, arm, last, last - arm), fill=fill)
    return layer


def _draw_text(item: Item, side: int) -> Image.Image:
    font, (left, top, right, bottom) = _lettering(item, side)
    layer = Image.new("RGBA", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2), (0, 0, 0, 0))
    ImageDraw.Draw(layer).text((1 - left, 1 - top), item.name.upper(), font=font, fill=COLORS[item.color or "black"])
    return layer


def text_size(item: Item, canvas: int = CANVAS) -> tuple[float, float]:
    """Width and height of the box of a written item that is not turned, in fractions of the picture's side."""
    _, (left, top, right, bottom) = _lettering(item, max(8, round(item.size * canvas)))
    return (math.ceil(right - left) + 2) / canvas, (math.ceil(bottom - top) + 2) / canvas


def _lettering(item: Item, side: int) -> tuple[ImageFont.FreeTypeFont, tuple[float, float, float, float]]:
    """The font of a written item, and the box of its letters."""
    written = item.name.upper()
    points = item.points
    if not points:
        left, top, right, bottom = _font(item.style, 64).getbbox(written)
        # The box is `side` wide for a word; short numbers are limited by height instead.
        points = max(10, round(64 * min(side / (right - left), 0.6 * side / (bottom - top))))
    font = _font(item.style, points)
    return font, font.getbbox(written)


def _draw_sign(item: Item, side: int) -> Image.Image:
    """A board with a number as high as fits."""
    height = round(side * SIGN_HEIGHT)
    dark = item.color in ("red", "green", "blue", "purple", "brown", "black")
    layer = Image.new("RGBA", (side, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    draw.rounded_rectangle((0, 0, side - 1, height - 1), 3, fill=COLORS[item.color or "white"], outline=(30, 30, 30))
    font = _font(item.style, round(height * 0.8))
    left, top, right, bottom = font.getbbox(item.name)
    corner = ((side - right - left) / 2, (height - bottom - top) / 2)
    draw.text(corner, item.name, font=font, fill=COLORS["white" if dark else "black"])
    return layer


@lru_cache(maxsize=256)
def _font(style: str, points: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / _FONTS[style]), points)
