"""Photographs of things that are also drawn: cut-outs of Debian's `tuxpaint-stamps-default` (GPL-2), by the name they
are asked for. They are fetched (`research.fetch`), never shipped."""

FOLDER = "stamps"
"""Below the folder of the pictures; files are named below it as in the package."""

# Shown while training.
TRAINED: dict[str, tuple[str, ...]] = {
    "bee": ("animals/insects/bee",),
    "frog": ("animals/amphibians/frog-1",),
    "rabbit": ("animals/mammals/rodents/rabbit", "animals/mammals/rodents/rabbit-2"),
    "mouse": ("animals/mammals/rodents/mouse",),
    "camel": ("animals/mammals/camel/dromedary",),
    "bear": ("animals/mammals/bears/european-bear",),
    "dolphin": ("animals/mammals/aquatic/dolphin",),
    "pig": ("animals/mammals/pig", "animals/mammals/pig_golden2"),
    "tiger": ("animals/mammals/cats/tiger",),
    "lion": ("animals/mammals/cats/lion",),
    "sheep": ("animals/mammals/bovines/sheep",),
    "cow": ("animals/mammals/bovines/cow", "animals/mammals/bovines/bull"),
    "goat": ("animals/mammals/bovines/mountaingoat",),
    "dog": ("animals/mammals/dogs/dog",),
    "deer": ("animals/mammals/deer/deer", "animals/mammals/deer/wapiti"),
    "duck": ("animals/birds/drake",),
    "bird": (
        "animals/birds/blackbird", "animals/birds/lark", "animals/birds/cuckoo", "animals/birds/magpie",
        "animals/birds/crow", "animals/birds/silver-gull",
    ),
    "fish": (
        "animals/fish/stripedfish", "animals/fish/coraltrout", "animals/fish/moonwrasse", "animals/fish/butterflyfish",
        "animals/fish/bluegroper",
    ),
    "apple": ("food/fruit/apple_green", "food/fruit/apple_red", "food/fruit/apple_fuji"),
    "orange": ("food/fruit/orange", "food/fruit/orange_seville"),
    "strawberry": ("food/fruit/strawberry",),
    "lemon": ("food/fruit/lemon",),
    "tomato": ("food/vegetables/tomato",),
    "carrot": ("food/vegetables/carrot",),
    "broccoli": ("food/vegetables/broccoli",),
    "mushroom": ("food/vegetables/mushroom", "plants/mushrooms/cep-1"),
    "pizza": ("food/pizza",),
    "hat": ("clothes/hats/green_fedora", "clothes/hats/feathered_hat", "clothes/hats/tophat"),
    "key": ("household/key",),
    "hammer": ("household/tools/hammer",),
    "guitar": ("hobbies/music/string/guitar_electric", "hobbies/music/string/guitar2"),
    "trumpet": ("hobbies/music/brass/trumpet",),
    "drum": ("hobbies/music/percussion/drum_tomtom_floor",),
    "rose": ("plants/flowers/rose",),
    "airplane": ("vehicles/flight/planes/747",),
    "car": ("vehicles/auto/beetle", "vehicles/auto/sedan"),
    "truck": ("vehicles/emergency/firetruck", "vehicles/garbagetruck"),
    "balloon": ("vehicles/flight/balloon360",),
    "boat": ("vehicles/ship/walnutBoat",),
    "basketball": ("sports/basketball",),
    "football": ("sports/soccer",),
    "moon": ("space/moon/moon_3qt", "space/moon/moon_full"),
    "tree": ("plants/trees/holm_oak", "plants/trees/tree336"),
    "candle": ("seasonal/candle",),
}  # fmt: skip

# Other pictures of the same things: for tests alone.
KEPT: dict[str, tuple[str, ...]] = {
    "frog": ("animals/amphibians/frog",),
    "rabbit": ("animals/mammals/rabbit_little",),
    "camel": ("animals/mammals/camel/camel",),
    "bear": ("animals/mammals/bears/bear",),
    "pig": ("animals/mammals/pig_golden",),
    "tiger": ("animals/mammals/cats/tiger_sumatran",),
    "lion": ("animals/mammals/cats/lion-2",),
    "sheep": ("animals/mammals/bovines/ram",),
    "cow": ("animals/mammals/bovines/cow_white",),
    "goat": ("animals/mammals/bovines/goat",),
    "deer": ("animals/mammals/deer/doe",),
    "duck": ("animals/birds/duck",),
    "bird": ("animals/birds/seagull", "animals/birds/adelaide-rosella"),
    "fish": ("animals/fish/clownfish", "animals/fish/dolphinfish"),
    "apple": ("food/fruit/apple_granny_smith", "food/fruit/apple_sierra_beauty"),
    "orange": ("food/fruit/mandarine",),
    "strawberry": ("food/fruit/Strawberry2",),
    "mushroom": ("plants/mushrooms/cep",),
    "hat": ("clothes/hats/blue_fedora", "clothes/hats/sombrero"),
    "guitar": ("hobbies/music/string/guitar_classical",),
    "car": ("vehicles/auto/sportscar2",),
    "truck": ("vehicles/auto/truck",),
    "moon": ("space/moon/moon_crescent",),
    "tree": ("plants/trees/birch",),
}

# Things that training shows drawn only: tests alone show what they look like.
KEPT_KINDS: dict[str, tuple[str, ...]] = {
    "fox": ("animals/mammals/dogs/fox",),
    "horse": ("animals/mammals/equines/horse",),
    "elephant": ("animals/mammals/elephant",),
    "owl": ("animals/birds/owl",),
    "banana": ("food/fruit/banana",),
    "pineapple": ("food/fruit/pineapple",),
    "corn": ("food/vegetables/corn",),
    "camera": ("hobbies/camera_35mm",),
    "bus": ("vehicles/masstransit/green_korean_bus",),
    "ship": ("vehicles/ship/chineseJunk",),
}


def style_of(file: str) -> str:
    """The style of a thing that is one photograph, for `Item.style`."""
    return f"{FOLDER}/{file}"
