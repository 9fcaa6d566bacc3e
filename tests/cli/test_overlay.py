"""The picture of kept tokens: cells lie where the processor put them."""

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from visipruner.asking import overlay


@pytest.mark.parametrize(
    ("processor", "box"),
    [
        (SiglipImageProcessorPil(), (0, 0, 900, 600)),
        (CLIPImageProcessorPil(), (150, 0, 750, 600)),
        (CLIPImageProcessorPil(size={"height": 256, "width": 256}), (56.25, 37.5, 843.75, 562.5)),
        (LlavaImageProcessorPil(do_pad=True), (0, -150, 900, 750)),
    ],
    ids=["square resize", "center crop", "resize and crop", "pad to square"],
)
def test_the_part_the_model_sees(processor, box):
    assert overlay.seen_box((900, 600), processor) == pytest.approx(box)


@pytest.mark.parametrize("size", [(600, 400), (300, 900), (33, 21)])
@pytest.mark.parametrize("processor", [SiglipImageProcessorPil(), CLIPImageProcessorPil()])
def test_a_cell_of_the_grid_is_the_cell_the_processor_cuts_out(size, processor):
    """Paint one cell white in the image, find it again in the processed pixels."""
    cells, kept = 7, (2, 4)
    left, top, right, bottom = overlay.seen_box(size, processor)
    image = Image.new("RGB", size)
    width, height = (right - left) / cells, (bottom - top) / cells
    x, y = left + kept[1] * width, top + kept[0] * height
    image.paste("white", (round(x), round(y), round(x + width), round(y + height)))
    pixels = processor(image, return_tensors="pt", do_normalize=False)["pixel_values"][0].mean(0)
    side = pixels.shape[0] // cells
    brightness = pixels[: side * cells, : side * cells].reshape(cells, side, cells, side).mean((1, 3))
    assert divmod(int(brightness.argmax()), cells) == kept


def test_kept_cells_stay_bright_and_dropped_ones_go_dark():
    image = Image.new("RGB", (400, 400), (200, 100, 50))
    grid = [[row == 1 and column == 2 for column in range(4)] for row in range(4)]
    drawn = overlay.draw(image, grid, (0, 0, 400, 400), ["question", "answer", "note"])
    cell = overlay.LONG_SIDE // 4
    assert drawn.getpixel((int(2.5 * cell), int(1.5 * cell))) == (200, 100, 50)
    assert max(drawn.getpixel((cell // 2, cell // 2))) < 100
    assert drawn.getpixel((2 * cell, int(1.5 * cell))) == overlay.KEPT_COLOR
    assert drawn.height > overlay.LONG_SIDE


def test_neighbours_share_one_outline():
    image = Image.new("RGB", (400, 400), (200, 100, 50))
    drawn = overlay.draw(image, [[False] * 4, [False, True, True, False]] * 2, (0, 0, 400, 400), ["q"])
    cell = overlay.LONG_SIDE // 4
    assert drawn.getpixel((2 * cell, int(1.5 * cell))) == (200, 100, 50)


def test_what_the_crop_left_out_is_darkest():
    image = Image.new("RGB", (800, 400), "white")
    drawn = overlay.draw(image, [[False]], overlay.seen_box(image.size, CLIPImageProcessorPil()), ["q"])
    middle = drawn.getpixel((overlay.LONG_SIDE // 2, 100))
    assert max(drawn.getpixel((5, 100))) < min(middle) < 128


@pytest.mark.parametrize("caption", [["word " * 300, "x" * 500, "note"], ["", "", ""]])
def test_any_caption_fits(caption):
    drawn = overlay.draw(Image.new("RGB", (10, 1000)), [[True]], (0, 0, 10, 1000), caption)
    assert drawn.width == overlay.LONG_SIDE // 2
    assert drawn.height < 2 * overlay.LONG_SIDE
