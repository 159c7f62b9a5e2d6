"""The one exception for what a user can mend, and the search for what they may have meant."""

import difflib
from collections.abc import Iterable


class TaskError(ValueError):
    """A task, an option or an environment that cannot be used; the message says what to do about it."""


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """' Did you mean X?' for the choice closest to `given`, or '' when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
