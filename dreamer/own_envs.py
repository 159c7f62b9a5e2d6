"""The package `envs` of this project: the name is a common one, so somebody else's may be found instead."""

from types import ModuleType

from .errors import UserMistake


def own_envs() -> ModuleType:
    """Import it.

    Raises:
        UserMistake: Python found another package of this name.
    """
    import envs

    if getattr(envs, "PROJECT", None) != "dreamer":
        place = envs.__file__ or list(envs.__path__)[0]
        raise UserMistake(
            f"Python found another package called envs, at {place}; run from another folder, or uninstall it"
        )
    return envs
