"""Image files as people have them."""

import numpy as np
import pytest
from PIL import Image, features

from visipruner.errors import ConfigError
from visipruner.images import open_image


def test_orientation_is_followed(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode).save(
        tmp_path / "clear.png", transparency=0 if mode == "P" else None
    )
    opened = open_image(tmp_path / "clear.png")
    assert opened.mode == "RGB"
    assert opened.getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_contrast(tmp_path):
    levels = np.linspace(0, 60000, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    opened = np.asarray(open_image(tmp_path / "deep.png"))[..., 0]
    assert opened.min() == 0
    assert opened.max() == 255
    assert len(np.unique(opened)) > 200


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "other.tif")
    assert open_image(tmp_path / "other.tif").mode == "RGB"


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.02])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_file_cut_short_is_named(tmp_path, kind, kept):
    path = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ConfigError, match=r"cut\.(png|jpg) is (damaged or cut short|not an image)"):
        open_image(path)


@pytest.mark.parametrize("at", [-1, 24])  # a chunk's name, its content
def test_a_damaged_file_is_named(tmp_path, at):
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "bad.png")
    content = bytearray((tmp_path / "bad.png").read_bytes())
    content[content.find(b"IDAT") + at] ^= 0x40
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.png is damaged or cut short"):
        open_image(tmp_path / "bad.png")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_named(tmp_path):
    """Pillow tells of some damages by an error of another kind than for any other format."""
    path, whole = tmp_path / "bad.avif", tmp_path / "whole.avif"
    Image.effect_noise((64, 64), 90).convert("RGB").save(whole)
    kinds = set()
    for at in range(20, 600, 7):
        content = bytearray(whole.read_bytes())
        content[at] ^= 0x55
        path.write_bytes(content)
        try:
            open_image(path)
        except ConfigError as error:
            kinds.add(type(error.__context__))
    assert RuntimeError in kinds


def test_a_picture_too_large_to_open_is_named(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConfigError, match="too many pixels"):
        open_image(tmp_path / "large.png")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_ordinary_files_are_as_pillow_has_them(tmp_path, mode, kind):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / f"plain.{kind}")
    with Image.open(tmp_path / f"plain.{kind}") as plain:
        assert np.array_equal(open_image(tmp_path / f"plain.{kind}"), plain.convert("RGB"))


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (3000, 2)).save(tmp_path / "line.png")
    for name, message in {
        "missing.png": "There is no file",
        "notes.txt": "not an image",
        "empty.png": "not an image",
        "line.png": "3000 x 2 pixels",
        ".": "is a folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            open_image(tmp_path / name)
