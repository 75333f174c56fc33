"""What the user can mend: shown as one line, without a traceback."""


class DemoError(Exception):
    """Something about the corpus, the output folder or a checkpoint does not fit; exit status 1."""


class UsageError(Exception):
    """The options do not fit together; exit status 2."""
