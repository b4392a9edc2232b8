"""The one exception for input that this project refuses."""


class BadInput(ValueError):
    """A file, a setting or a shape that cannot be used.

    The message is one sentence for the user: what must hold, what came and where, what to do.
    """
