"""The base of everything midcourse raises for a user to read: one sentence, with the value and the remedy."""


class MidcourseError(ValueError):
    """An error for a user to read. The command line prints it and exits with status 2."""
