"""Image files as RGB pictures, with an answer for everything that can be wrong with a file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from visipruner.errors import ConfigError
from visipruner.files import exists

MAX_ASPECT = 100


def open_image(path: Path) -> Image.Image:
    """The picture as a viewer shows it: upright, transparent parts on white, RGB. Raises ConfigError."""
    if str(path).startswith(("http:", "https:")):
        raise ConfigError(f"{path} is an address; save the image to a file first and give the file.")
    if not exists(path):
        raise ConfigError(f"There is no file {path}; check the path.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the image files in it, for instance {path}/*.jpg.")
    try:
        picture = _opened(path)
    except UnidentifiedImageError:
        raise ConfigError(f"{path} is not an image that Pillow can read; convert it to PNG or JPEG.") from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{path} has too many pixels to be opened safely; scale it down first.") from None
    # Pillow reports a file cut short as OSError, a damaged PNG as SyntaxError or ValueError, AVIF as RuntimeError.
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ConfigError(f"{path} is damaged or cut short ({error}); save or download it again.") from None
    width, height = picture.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ConfigError(f"{path} is {width} x {height} pixels, too narrow to make sense of; crop it first.")
    return picture


def _opened(path: Path) -> Image.Image:
    # Formats jump about in their file, and a pipe cannot.
    source = path if path.is_file() else io.BytesIO(path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
        with Image.open(source) as file:
            file.load()
            return _to_rgb(ImageOps.exif_transpose(file))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit and float greys: Pillow would clip them to white.
        low, high = picture.convert("F").getextrema()
        scale = 255.0 / max(float(high) - float(low), 1e-9)  # type: ignore[arg-type]
        return picture.convert("F").point(lambda v: v * scale - float(low) * scale).convert("RGB")  # type: ignore[arg-type]
    if "transparency" in picture.info or picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"}:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
