"""Everything that decides the weights of a training besides its length: one recipe to begin with, one to go on with."""

from dataclasses import dataclass

from visipruner.testbed.scenes import EVEN, PRACTICE, TRAIN_STYLES, LayoutOptions, Mix


@dataclass(frozen=True)
class Recipe:
    """Seeds, sizes and rates.

    `warm_*` are of the warm start, `word_*` of the refit of the projector to written words, which comes before a
    training that goes on from another. `practice` draws more repeated kinds, shapes and words and asks mostly what is
    hard. `dtype` is that of the frozen language model; what is learnt is always float32.
    """

    seed: str = "train-0"
    rank: int = 32
    questions: int = 10
    batch: int = 2
    lora_rate: float = 8e-4
    projector_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_images: int = 60
    easy_images: int = 240
    decay_share: float = 0.2
    warm_images: int = 900
    warm_steps: int = 1500
    practice: bool = False
    word_images: int = 0
    word_steps: int = 0
    dtype: str = "bfloat16"

    def rate(self, image: int, images: int) -> float:
        """Learning-rate factor: linear warm-up, constant, linear decay over the last `decay_share` of all images."""
        return min(1.0, (image + 1) / self.warmup_images, (images - image) / (self.decay_share * images))

    def options(self, image: int) -> LayoutOptions:
        """Pictures hold at most three things at first."""
        most = 3 if image < self.easy_images else 6
        if not self.practice:
            return LayoutOptions(styles=TRAIN_STYLES, max_items=most)
        return LayoutOptions(
            styles=TRAIN_STYLES,
            least_items=2,
            max_items=most,
            layouts=(0.06, 0.24, 0.7),
            repeat_share=0.5,
            spare_some=True,
            shape_share=0.5,
            text_share=0.45,
            most_texts=3,
        )

    @property
    def mix(self) -> Mix:
        """Which questions are asked."""
        return PRACTICE if self.practice else EVEN


FIRST = Recipe()

# Starts from the weights of another training, so there is no warm start. A question costs 14 tokens, a picture 280:
# many questions for each picture.
SECOND = Recipe(
    seed="train-1",
    questions=24,
    practice=True,
    easy_images=120,
    warmup_images=40,
    decay_share=0.62,
    word_images=600,
    word_steps=800,
    dtype="float32",
)
