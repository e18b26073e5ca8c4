"""What a user did that cannot be done, in one sentence that names the mend."""


class InputError(ValueError):
    """Bad input from outside: an option, a data set, a file of weights.

    The message is one or two lines, complete without a traceback, and says what to do instead.
    Drivers print it as it stands and exit with a non-zero status; anything else that is raised is a defect.
    """


class DivergedError(InputError):
    """A training whose loss is no longer a number."""


class ElsewhereError(InputError):
    """What ended another process of the same training, and this one with it."""
