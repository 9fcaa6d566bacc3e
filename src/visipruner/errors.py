"""What the library raises for its users. Each message is one sentence that says what to do."""


class VisiPrunerError(Exception):
    """Base of every error that a user can cause or repair."""


class UnsupportedModelError(VisiPrunerError):
    """The model, its attention or its cache is of a kind that cannot be pruned."""


class LayoutError(VisiPrunerError):
    """It cannot be told which rows of a prompt are visual, or the mask given does not fit."""


class ConfigError(VisiPrunerError, ValueError):
    """A pruner's settings make no sense, alone or for this model."""


class LoadError(VisiPrunerError):
    """A model, its processor or its device is not here, or cannot be loaded."""


def first_line(error: BaseException) -> str:
    """What an exception says, without the explanations that some libraries append."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch reports that as a RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)
