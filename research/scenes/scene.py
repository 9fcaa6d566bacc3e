"""What a scene is: items on a background, in coordinates of a square of side 1. No pixels and no questions here."""

from dataclasses import dataclass

POSITIONS: tuple[tuple[str, str, str], ...] = (
    ("top left", "top middle", "top right"),
    ("middle left", "middle", "middle right"),
    ("bottom left", "bottom middle", "bottom right"),
)


@dataclass(frozen=True)
class Background:
    """`color` is a name of `vocabulary.COLORS`, or None for a texture whose colour has no name and is never asked
    for: "blobs", or one of `grounds.GROUNDS`."""

    kind: str
    color: str | None


@dataclass(frozen=True)
class Item:
    """One thing in a scene. `x`, `y` centre and `size` (side of its box) are fractions of the image side.

    `kind` is "emoji" (`name` is an object), "shape" (`name` is a shape, `color` its colour) or "text" (`name` is what
    is written, with letters of `points` pixels where that is not 0, else `size` wide). In scenes of small things
    (`small`) also "plate" and "tile" (a disc or square of `color`, which is its name) and "sign" (a board of `color`
    with the number `name`). A photograph is an "emoji" whose style names its file (`photographs`).
    """

    kind: str
    name: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    flip: bool = False
    color: str | None = None
    style: str = ""
    points: int = 0

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return third(self.y)

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right."""
        return third(self.x)

    @property
    def position(self) -> str:
        """Name of the place of the centre, one of `POSITIONS`."""
        return place_of(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    """A background, its items in drawing order, and the blur radius and noise that finish the picture."""

    background: Background
    items: tuple[Item, ...]
    blur: float
    noise: float
    noise_seed: int


def place_of(x: float, y: float) -> str:
    """One of `POSITIONS`."""
    return POSITIONS[third(y)][third(x)]


def third(coordinate: float) -> int:
    """0, 1 or 2: left, middle, right, or top, middle, bottom; the middle is narrower than its name says."""
    return 0 if coordinate < 0.4 else 2 if coordinate > 0.6 else 1
