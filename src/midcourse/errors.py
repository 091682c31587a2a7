"""The base of everything midcourse raises for a user to read: one sentence, with the value and the remedy."""


class MidcourseError(ValueError):
    """Caught by the command line, which prints it and exits with status 2."""
