"""What the library raises for its users. Each message is one sentence that says what to do."""


class VisiPrunerError(Exception):
    """Base of every error that a user can cause or repair."""


class UnsupportedModelError(VisiPrunerError):
    """The model, its attention or its cache is of a kind that cannot be pruned."""


class LayoutError(VisiPrunerError):
    """It cannot be told which rows of a prompt are visual, or the mask given does not fit."""


class ConfigError(VisiPrunerError, ValueError):
    """A pruner's settings make no sense, alone or for this model."""
