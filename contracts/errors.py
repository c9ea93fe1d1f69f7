"""Errors of the data, of a training and of a servable, which callers tell apart."""


class Differs(ValueError):
    """A log or a feature table breaks the schema of the span before, or has drifted from it."""


class TooFewEvents(ValueError):
    """The events hold no target to train on, or nobody, or too few users, to measure a model on."""


class Diverged(ValueError):
    """A loss of training was NaN or infinite."""


class Unfit(RuntimeError):
    """A servable that its validation refused, or could not ask: nobody's input, so no ValueError."""
