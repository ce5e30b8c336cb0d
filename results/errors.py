"""The one error under all that a user can cause."""


class IsoflopError(Exception):
    """One line for the user: what is wrong, where (file, key), and the remedy.

    The command line prints the line and ends with exit code 2. A plug-in's or a layer's own error
    may derive from it, and is then shown so too.
    """
