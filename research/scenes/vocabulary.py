"""The words scenes are made of: object names with their emoji code points, colours, shapes, written words.

Names are everyday words that are one token of the language model's vocabulary wherever possible, so that an answer
is one decision.
"""

OBJECTS: dict[str, str] = {
    "cat": "1f408", "dog": "1f415", "horse": "1f434", "cow": "1f404", "pig": "1f416", "sheep": "1f411",
    "goat": "1f410", "mouse": "1f401", "rabbit": "1f407", "lion": "1f981", "tiger": "1f405", "bear": "1f43b",
    "panda": "1f43c", "elephant": "1f418", "fox": "1f98a", "monkey": "1f412", "duck": "1f986", "owl": "1f989",
    "eagle": "1f985", "bird": "1f426", "frog": "1f438", "turtle": "1f422", "snake": "1f40d", "whale": "1f433",
    "dolphin": "1f42c", "shark": "1f988", "fish": "1f41f", "octopus": "1f419", "crab": "1f980",
    "butterfly": "1f98b", "bee": "1f41d", "ant": "1f41c", "spider": "1f577", "snail": "1f40c", "deer": "1f98c",
    "camel": "1f42b", "apple": "1f34e", "banana": "1f34c", "orange": "1f34a", "lemon": "1f34b",
    "strawberry": "1f353", "watermelon": "1f349", "pineapple": "1f34d", "tomato": "1f345", "carrot": "1f955",
    "corn": "1f33d", "mushroom": "1f344", "bread": "1f35e", "cheese": "1f9c0", "pizza": "1f355", "egg": "1f95a",
    "cake": "1f370", "cookie": "1f36a", "coffee": "2615", "beer": "1f37a", "wine": "1f377", "car": "1f697",
    "bus": "1f68c", "truck": "1f69a", "train": "1f682", "bicycle": "1f6b2", "airplane": "2708",
    "helicopter": "1f681", "rocket": "1f680", "boat": "26f5", "ship": "1f6a2", "house": "1f3e0", "tent": "26fa",
    "tree": "1f333", "cactus": "1f335", "rose": "1f339", "leaf": "1f341", "sun": "2600", "moon": "1f319",
    "cloud": "2601", "fire": "1f525", "rainbow": "1f308", "umbrella": "2602", "football": "26bd",
    "basketball": "1f3c0", "guitar": "1f3b8", "trumpet": "1f3ba", "piano": "1f3b9", "drum": "1f941", "key": "1f511",
    "lock": "1f512", "hammer": "1f528", "pencil": "270f", "book": "1f4d6", "watch": "231a", "clock": "23f0",
    "camera": "1f4f7", "phone": "1f4f1", "laptop": "1f4bb", "chair": "1fa91", "bed": "1f6cf", "door": "1f6aa",
    "shoe": "1f45f", "shirt": "1f455", "dress": "1f457", "hat": "1f3a9", "crown": "1f451", "ring": "1f48d",
    "diamond": "1f48e", "gift": "1f381", "balloon": "1f388", "bell": "1f514", "heart": "2764", "skull": "1f480",
    "ghost": "1f47b", "robot": "1f916", "anchor": "2693", "candle": "1f56f", "broccoli": "1f966",
    "dinosaur": "1f996",
}  # fmt: skip

# Never drawn for training; the test set asks about them under a type of their own.
UNSEEN_OBJECTS: dict[str, str] = {
    "zebra": "1f993", "wolf": "1f43a", "penguin": "1f427", "pear": "1f350", "violin": "1f3bb", "castle": "1f3f0",
    "motorcycle": "1f3cd", "tractor": "1f69c", "lamp": "1f4a1", "parrot": "1f99c",
}  # fmt: skip

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40), "orange": (245, 140, 30), "yellow": (250, 220, 60), "green": (50, 160, 70),
    "blue": (50, 95, 215), "purple": (130, 60, 175), "pink": (250, 160, 200), "brown": (125, 80, 45),
    "gray": (140, 140, 140), "black": (22, 22, 22), "white": (247, 247, 247),
}  # fmt: skip

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")

WORDS: tuple[str, ...] = (
    "stop", "open", "exit", "sale", "taxi", "hotel", "bank", "park", "home", "hello", "love", "milk", "menu", "north",
    "south", "news", "shop", "food", "free", "help", "school", "water", "music", "police", "street", "garden",
    "summer", "winter", "welcome", "closed",
)  # fmt: skip

# What stands before the words of a page; none is one of `WORDS`.
LABELS: tuple[str, ...] = (
    "name", "city", "date", "room", "price", "size", "team", "floor", "gate", "seat", "total", "order", "table",
    "month", "road", "line", "page", "class", "code", "time",
)  # fmt: skip

NUMBER_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")

_IRREGULAR_PLURALS = {
    "sheep": "sheep", "fish": "fish", "deer": "deer", "mouse": "mice", "octopus": "octopuses", "leaf": "leaves",
    "wolf": "wolves", "cactus": "cactuses", "butterfly": "butterflies", "strawberry": "strawberries",
    "bread": "loaves of bread", "corn": "ears of corn", "coffee": "cups of coffee", "beer": "glasses of beer",
    "wine": "glasses of wine", "cheese": "pieces of cheese", "fire": "fires", "broccoli": "pieces of broccoli",
}  # fmt: skip


def plural(name: str) -> str:
    """`cat` -> `cats`, `mouse` -> `mice`, `watch` -> `watches`."""
    if name in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[name]
    return name + ("es" if name.endswith(("s", "x", "sh", "ch")) else "s")


def with_article(name: str) -> str:
    """`cat` -> `a cat`, `apple` -> `an apple`."""
    return ("an " if name[0] in "aeiou" else "a ") + name
