"""The one exception that a user's mistake turns into."""


class RedcaneError(Exception):
    """A bad input or a missing tool, told in one sentence: what is wrong, where, and what to do about it.

    The command line prints the sentence and exits with code 2; anything else that is raised is a defect of ours.
    """
