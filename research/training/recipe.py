"""Everything that decides the weights of a training."""

from dataclasses import dataclass, replace

from research.scenes import MIXES, TRAIN_STYLES, LayoutOptions, Mix
from research.scenes.photographs import TRAINED

SMALL, LARGE = 16, 24
"""Visual tokens along a picture's side: 224 and 336 pixels."""


@dataclass(frozen=True)
class WarmRound:
    """A part of the warm start: `images` scenes of a seed, of each of `kinds` in turn (`warmstart.KINDS`), `LARGE` in
    every `large_every`-th batch; the rates fall along half a cosine."""

    seed: str
    images: int
    kinds: tuple[str, ...]
    large_every: int
    vision_rate: float = 1e-3
    projector_rate: float = 2e-3


# Things first; then mostly words, which are harder to tell apart; then all of it.
WARM_ROUNDS = (
    WarmRound("warm-start", 5400, ("plain", "crowded", "wordy"), large_every=4),
    WarmRound("warm-words", 1800, ("page", "wordy", "page", "crowded"), large_every=3, projector_rate=1.5e-3),
    WarmRound("warm-all", 1500, ("plain", "crowded", "wordy", "page"), large_every=3, projector_rate=1.5e-3),
)


@dataclass(frozen=True)
class Recipe:
    """Seeds, sizes and rates of a training that learns from `images` pictures, `batch` a step.

    The warm start trains the vision tower with rank `vision_rank`; `rank` is that of the language model. Of all
    pictures, every `large_every`-th has `LARGE` sides, and all of the last `large_share`; every `easy_vqa_every`-th is
    one of easy-VQA's training part (0: none). Pictures hold at most three things for the first `easy_images`; `mixes`
    says from which picture on which of `scenes.MIXES` is asked, and the shares are those of `LayoutOptions`. With
    `tallying` a count is answered with the tally before the number. `dtype` is that of what is frozen; what is learnt
    is always float32.

    `parts` says what each picture in turn is: "plain", or one of `small.PARTS`, which always has `LARGE` sides. Where
    there are photographs of a thing, `photograph_share` of the plain ones are. A training that goes on from earlier
    weights first goes through `sight_rounds`, which are as those of a warm start.
    """

    seed: str = "train-2"
    images: int = 1100
    rank: int = 32
    vision_rank: int = 16
    questions: int = 16
    batch: int = 2
    lora_rate: float = 8e-4
    projector_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_images: int = 60
    easy_images: int = 120
    mixes: tuple[tuple[int, str], ...] = ((0, "even"), (240, "hard"))
    layouts: tuple[float, float, float] = (0.1, 0.25, 0.65)
    repeat_share: float = 0.4
    shape_share: float = 0.35
    text_share: float = 0.3
    decay_share: float = 0.6
    large_every: int = 10
    large_share: float = 0.12
    easy_vqa_every: int = 12
    warm_rounds: tuple[WarmRound, ...] = WARM_ROUNDS
    warm_batch: int = 6
    tallying: bool = False
    parts: tuple[str, ...] = ("plain",)
    photograph_share: float = 0.0
    sight_rounds: tuple[WarmRound, ...] = ()
    dtype: str = "bfloat16"

    def rate(self, image: int) -> float:
        """Learning-rate factor: linear warm-up, constant, linear decay over the last `decay_share` of all images."""
        left = (self.images - image) / (self.decay_share * self.images)
        return min(1.0, (image + 1) / self.warmup_images, left)

    def side(self, image: int) -> int:
        """Visual tokens along the side of a picture."""
        last = image >= (1 - self.large_share) * self.images
        return LARGE if last or image % self.large_every == 0 or self.part(image) != "plain" else SMALL

    def part(self, image: int) -> str:
        """What a picture is, where it is none of easy-VQA's."""
        return "plain" if self.is_easy_vqa(image) else self.parts[image % len(self.parts)]

    def is_easy_vqa(self, image: int) -> bool:
        """Whether this picture is one of easy-VQA's."""
        return self.easy_vqa_every > 0 and image % self.easy_vqa_every == self.easy_vqa_every - 1

    def mix(self, image: int) -> Mix:
        """What is asked about a picture."""
        return MIXES[[name for first, name in self.mixes if first <= image][-1]]

    def options(self, image: int) -> LayoutOptions:
        """What a picture may hold."""
        return LayoutOptions(
            styles=TRAIN_STYLES,
            max_items=3 if image < self.easy_images else 6,
            layouts=self.layouts,
            repeat_share=self.repeat_share,
            shape_share=self.shape_share,
            text_share=self.text_share,
            photographs=TRAINED if self.photograph_share else {},
            photograph_share=self.photograph_share,
        )


FIRST = Recipe()
# Goes on from the first, whose rate has fallen to nothing, with what takes two things at once: many questions about
# each picture, as the picture costs more than they do.
SECOND = Recipe(
    seed="train-3",
    images=1700,
    questions=32,
    lora_rate=6e-4,
    easy_images=0,
    mixes=((0, "pairs"), (284, "sizes")),
    layouts=(0.05, 0.25, 0.7),
    repeat_share=0.5,
    shape_share=0.45,
    text_share=0.4,
    decay_share=0.7,
    large_every=4,
    large_share=0.15,
    easy_vqa_every=10,
)
# Counting is what is left to learn, and easy-VQA, whose shapes and colours are its own.
THIRD = replace(
    SECOND,
    seed="train-4",
    images=700,
    lora_rate=5e-4,
    warmup_images=40,
    mixes=((0, "counts"),),
    layouts=(0.03, 0.25, 0.72),
    repeat_share=0.85,
    text_share=0.25,
    easy_vqa_every=5,
)
# Each picture asks for many numbers, as there are too few pictures for one or two in each.
FOURTH = replace(
    THIRD,
    seed="train-5",
    images=460,
    mixes=((0, "parts"),),
    text_share=0.12,
    large_every=8,
    easy_vqa_every=10,
)
# After two parts of many twos and threes it takes a single thing for two.
FIFTH = replace(
    SECOND,
    seed="train-6",
    images=200,
    lora_rate=4e-4,
    warmup_images=20,
    mixes=((0, "settled"),),
    layouts=(0.15, 0.3, 0.55),
    shape_share=0.35,
    text_share=0.3,
    decay_share=0.8,
    large_share=0.2,
)
# A number at once is a guess of how much there is of a kind. Counted aloud it follows from what the model can do: say
# where things are, a row at a time.
SIXTH = replace(
    FIFTH,
    seed="train-pilot",
    images=80,
    questions=20,
    lora_rate=8e-4,
    warmup_images=10,
    mixes=((0, "aloud"),),
    layouts=(0.08, 0.27, 0.65),
    repeat_share=0.6,
    decay_share=0.5,
    large_every=1000,
    large_share=0.0,
    easy_vqa_every=0,
    tallying=True,
)
SEVENTH = replace(
    SIXTH,
    seed="train-8",
    images=370,
    questions=32,
    lora_rate=7e-4,
    mixes=((0, "aloud"), (150, "tallies")),
    decay_share=0.6,
    large_every=FIFTH.large_every,
    large_share=FIFTH.large_share,
    easy_vqa_every=FIFTH.easy_vqa_every,
)
# More of the same: what is counted aloud gets better for as long as it is taught.
EIGHTH = replace(
    SEVENTH,
    seed="train-9",
    images=340,
    mixes=((0, "aloud"), (220, "tallies")),
    layouts=(0.12, 0.25, 0.63),
    text_share=0.2,
    decay_share=0.55,
)
# Counting aloud has taught it to stop early: descriptions leave things out.
NINTH = replace(
    EIGHTH,
    seed="train-10",
    images=150,
    lora_rate=5e-4,
    warmup_images=15,
    easy_images=90,
    mixes=((0, "described"),),
    layouts=(0.05, 0.3, 0.65),
    repeat_share=0.5,
    decay_share=0.7,
    large_share=0.25,
)
# Sizes, comparisons and words were asked less while counting was learnt.
TENTH = replace(
    NINTH,
    seed="train-12",
    images=240,
    easy_images=60,
    mixes=((0, "rounded"),),
    text_share=0.3,
    large_every=3,
    large_share=0.3,
)
# easy-VQA's teal is in no drawn scene and was met too rarely.
ELEVENTH = replace(
    TENTH,
    seed="train-13",
    images=90,
    lora_rate=4e-4,
    warmup_images=10,
    easy_images=0,
    easy_vqa_every=2,
)

# Small things, words and numbers, pages, and photographs: first to see, then to tell. Three pictures in eleven are
# plain, so that nothing is forgotten.
TWELFTH = replace(
    ELEVENTH,
    seed="train-14",
    images=1000,
    lora_rate=5e-4,
    warmup_images=30,
    easy_images=0,
    mixes=((0, "rounded"),),
    decay_share=0.6,
    large_every=4,
    large_share=0.1,
    easy_vqa_every=13,
    parts=(*("local", "plain", "documents") * 3, "local", "many"),
    photograph_share=0.5,
    sight_rounds=(
        WarmRound(
            "sight-small",
            6000,
            ("local", "documents", "photographs", "local", "documents", "crowded"),
            large_every=1,
            vision_rate=8e-4,
            projector_rate=0.0,
        ),
    ),
)

EARLIER_PARTS = {
    "first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH, "fifth": FIFTH, "sixth": SIXTH,
    "seventh": SEVENTH, "eighth": EIGHTH, "ninth": NINTH, "tenth": TENTH, "eleventh": ELEVENTH,
}  # fmt: skip
"""The parts of the course before the last, each going on from the one before."""
LAST_PART = TWELFTH
