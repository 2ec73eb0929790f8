"""The one exception that a user is meant to read."""


class VisionKitError(Exception):
    """A wrong input. The message is one line: the file or option, what was expected, what to do.

    Commands print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str = "") -> None:
        if message.startswith("Caught VisionKitError"):  # a loader worker's, traceback and all: ours is the last line
            message = message.strip().splitlines()[-1].split("VisionKitError: ", 1)[-1]
        super().__init__(message)
