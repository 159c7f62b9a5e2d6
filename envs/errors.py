"""What goes wrong with a task, each as one sentence that says what to do; and the search for what was meant."""

import contextlib
import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path


class TaskError(ValueError):
    """A task, an option or an environment that cannot be used; the message says what to do about it."""


class EnvironmentFailed(TaskError):
    """The environment's own code raised something, returned what cannot be used, or is gone.

    The message names the place; the whole traceback is the exception's cause, or one of its notes.
    """


@contextlib.contextmanager
def blaming(name: str, doing: str) -> Iterator[None]:
    """Turns whatever an environment's own code raises within into EnvironmentFailed; TaskErrors pass."""
    try:
        yield
    except TaskError:
        raise
    except (Exception, SystemExit) as error:  # anything: it is somebody else's code
        words = " ".join(str(error).split())  # one line
        said = f": {words[:300]}" if words else ""
        # A syntax error says itself where it is.
        place = "" if isinstance(error, SyntaxError) else f" ({_place(error)})"
        raise EnvironmentFailed(f"{name} raised {type(error).__name__} {doing}{said}{place}.") from error


def _place(error: BaseException) -> str:
    """The line that raised it, in the user's own code, if that took part."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_own(frame.filename)]
    place = (own or list(frames))[-1]
    return f"{place.filename}, line {place.lineno}"


def is_own(path: str) -> bool:
    """Whether a file is the user's own: neither of this package nor installed."""
    elsewhere = (Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))
    return not path.startswith("<") and not any(Path(path).is_relative_to(place) for place in elsewhere)


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """' Did you mean X?' for the choice closest to `given`, or '' when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
