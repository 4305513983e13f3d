"""Settings checked against what they set, before anything is made of them."""

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hmtl.errors import ConfigError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def check_settings(target: str, values: Mapping[str, Any]) -> None:
    """Refuse settings that a target does not take, and numbers and words where its annotations ask for something else.

    Args:
        target: the full name of a class or function. One that cannot be found or looked into is left alone.
        values: its arguments; a name may be that of a setting, "solver.step", whose last part is the argument.

    Raises:
        ConfigError: which setting, and what it should be.
    """
    hints, open_ended = _arguments(target)
    if not hints:
        return
    for name, value in values.items():
        key = name.rsplit(".", 1)[-1]
        if key.startswith("_"):
            continue
        if key not in hints and not open_ended:
            raise ConfigError(f"{name}: {target} takes no such setting; " + no_setting(key, hints))
        hint = hints.get(key, Any)
        kinds = get_args(hint) if get_origin(hint) in (Literal, Union, UnionType) else (hint,)
        takes_words = any(kind in (str, Path) or isinstance(kind, str) for kind in kinds)  # Literal's are words
        fits = {
            bool: bool in kinds,
            int: int in kinds or float in kinds,
            float: float in kinds or (int in kinds and isinstance(value, float) and value.is_integer()),
            str: takes_words,
            type(None): type(None) in kinds,
        }
        if Any not in kinds and not fits.get(type(value), True):
            wanted = [word for kind, word in WORDS.items() if kind in kinds] + ["a name"] * takes_words
            if any(get_origin(kind) in (list, tuple, Sequence) for kind in kinds) or not wanted:
                wanted.append("a list")
            raise ConfigError(f"{name}={'null' if value is None else value}: {' or '.join(wanted)} is needed.")


def takes(target: str, name: str) -> bool:
    """Whether a target takes an argument of that name, as far as one can tell."""
    hints, open_ended = _arguments(target)
    return open_ended or name in hints


def no_setting(key: str, known: Collection[str]) -> str:
    """Says that there is no such setting, and which one may be meant."""
    near = [] if key.split(".")[0] in known else difflib.get_close_matches(key, known, n=1)
    return f"there is no setting {key!r}: " + (
        f"did you mean {near[0]!r}?" if near else "see --help for those there are."
    )


def _arguments(target: str) -> tuple[dict[str, Any], bool]:
    """The annotations of a target's arguments, and whether it takes others besides."""
    hints: dict[str, Any] = {}
    open_ended = True
    try:
        found: Any = locate(target)
        makers = [found]
        if inspect.isclass(found):  # a class that takes **others hands them on to the next
            makers = [vars(base)["__init__"] for base in found.__mro__ if "__init__" in vars(base)]
        for maker in makers:
            parameters = inspect.signature(maker).parameters
            hints = {**dict.fromkeys(parameters, Any), **get_type_hints(maker), **hints}
            open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
            if not open_ended:
                break
    except Exception:  # whatever a module of a user's own may raise: making the object will tell
        return {}, True
    return hints, open_ended
