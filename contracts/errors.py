"""Errors in data, training and servables that callers need to tell apart."""


class Differs(ValueError):
    """A log or a feature table breaks the schema of the span before, or has drifted from it."""


class TooFewEvents(ValueError):
    """The events hold no target to train on, or no users, or too few, to measure a model on."""


class Diverged(ValueError):
    """A training loss was NaN or infinite."""


class Unfit(RuntimeError):
    """A servable failed its validation, or could not be queried: no input is at fault, so this is not a ValueError."""
