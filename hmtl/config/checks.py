"""Settings checked against what they set, before anything is made of them."""

import difflib
import importlib
import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hmtl.errors import ConfigError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "null"}
WORDS[Path] = WORDS[str]
HYDRAS: dict[str, Any] = {  # what Hydra takes beside the arguments of a target
    "_target_": Any,
    "_args_": list[Any],
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
}
LARGEST = 2**63 - 1  # of the whole numbers that arrays can hold


def check_part(name: str, part: Mapping[str, Any], kinds: Sequence[type] = ()) -> dict[str, Any]:
    """Refuse a part that its `_target_` would not make: another kind of target, arguments that it does not take, or
    values that its annotations do not allow.

    Args:
        name: of the part, as in messages: "solver".
        part: `_target_` and its arguments, plain values. What is below it and has a target is checked, too.
        kinds: what the target has to make one of; none: anything.

    Returns:
        The arguments that are to be other than they stand there: whole numbers that were written as 1e3.

    Raises:
        ConfigError: which setting, and what it should be.
    """
    target = part.get("_target_")
    maker = found(f"{name}._target_", target)
    hints, open_ended = _arguments(maker)
    if kinds and isinstance(made := maker if inspect.isclass(maker) else hints.get("return"), type):
        check_kind(name, target, issubclass(made, tuple(kinds)), kinds)
    whole: dict[str, Any] = {}
    for key, value in part.items():
        setting = f"{name}.{key}"
        if isinstance(value, Mapping) and "_target_" in value:
            check_part(setting, value)
        if key == "_partial_" and value is True and kinds:
            raise ConfigError(f"{setting}=true: it is to be made at once, leave {setting} out.")
        if key not in HYDRAS and (key not in hints or key == "return") and not open_ended:
            known = {f"{name}.{hint}": hint for hint in hints}
            raise ConfigError(f"{setting}: {target} takes no such setting; " + no_setting(setting, known))
        hint = {**hints, **HYDRAS}.get(key, Any)
        if wrong := next(_misfits(setting, value, hint), None):
            raise ConfigError(wrong)
        if key == "seed" and isinstance(value, int) and value < 0:
            raise ConfigError(f"{setting}={value} is below 0: give a whole number from 0.")
        if isinstance(value, float) and hint is not Any and float not in _kinds(hint):
            whole[key] = int(value)
    return whole


def check_kind(name: str, target: Any, fits: bool, kinds: Sequence[type]) -> None:
    """Refuse a target that does not make what is needed."""
    if not fits:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(
            f"{name}._target_={target} makes no {wanted}: choose a part of this group, see --help, or a class or "
            "function of your own that does."
        )


def found(name: str, target: Any) -> Any:
    """The class or function of that full name.

    Raises:
        ConfigError: there is none, or its module cannot be imported, and why.
    """
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(map(str.isidentifier, parts)):
        raise ConfigError(f"{name}={target}: the full name of a class or function is needed, such as hmtl.mtl.Hinge.")
    thing: Any = None
    for n, part in enumerate(parts, 1):
        try:
            thing = (
                getattr(thing, part) if n > 1 and hasattr(thing, part) else importlib.import_module(".".join(parts[:n]))
            )
        except (Exception, SystemExit) as error:  # whatever a module of a user's own may raise
            whole, known = ".".join(parts[: n - 1]), dir(thing) if n > 1 else ()
            if not isinstance(error, ModuleNotFoundError) or error.name != ".".join(parts[:n]):
                cause = f"{'.'.join(parts[:n])} cannot be imported ({type(error).__name__}: {error})"
            else:
                cause = f"{whole} has no {part}" if whole else f"there is no module {part}"
            near = difflib.get_close_matches(part, known, n=1)
            remedy = f"did you mean {whole}.{near[0]}?" if near else "check the name, and PYTHONPATH."
            raise ConfigError(f"{name}={target}: {cause}: {remedy}") from error
    if not callable(thing):
        raise ConfigError(f"{name}={target} is a {type(thing).__name__}, not a class or function that makes something.")
    return thing


def takes(target: str, name: str) -> bool:
    """Whether a target takes an argument of that name, as far as one can tell."""
    hints, open_ended = _arguments(found("_target_", target))
    return open_ended or name in hints


def no_setting(key: str, known: Collection[str]) -> str:
    """Says that there is no such setting, and which one may be meant: alike, or of the same name elsewhere."""
    parent, _, last = key.rpartition(".")
    beside = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent}
    near = [beside[each] for each in difflib.get_close_matches(last, beside, n=1) if each != last]
    near += [each for each in known if each.rpartition(".")[2] == last and "." in each]
    return f"there is no setting {key!r}: " + (
        f"did you mean {near[0]!r}?" if near else "see --help for those there are."
    )


def _misfits(name: str, value: Any, hint: Any) -> Iterator[str]:
    """What of a value is not as an annotation has it."""
    kinds = _kinds(hint)
    listed = [get_args(kind) or (Any,) for kind in kinds if _is(kind, list, tuple, Sequence)]
    if isinstance(value, list) and listed:
        for n, each in enumerate(value):
            yield from _misfits(f"{name}[{n}]", each, listed[0][0])
    elif not any(_fits(value, kind) for kind in kinds):
        words = [each for kind in kinds if get_origin(kind) is Literal for each in get_args(kind)]
        wanted = list(dict.fromkeys(word for kind, word in WORDS.items() if kind in kinds))
        wanted += [f"one of {', '.join(words)}"] * bool(words) + ["a list"] * bool(listed)
        if not wanted:
            wanted = ["names with values"] if any(_is(kind, dict, Mapping) for kind in kinds) else ["a _target_"]
        large = isinstance(value, int | float) and not abs(value) <= LARGEST
        shown = {None: "null", "": "''", True: "true", False: "false"}.get(value, value) if _plain(value) else value
        yield f"{name}={shown}: {' or '.join(wanted)} is needed{', finite and not as large' * large}."


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, str | TypeVar) or kind is Any or kind is object:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool) or value is None:
        return kind is type(value)
    if isinstance(value, int | float):
        return math.isfinite(value) and (kind is float or (kind is int and value % 1 == 0 and abs(value) <= LARGEST))
    if isinstance(value, str):
        return kind in (str, Path) and value != ""
    if isinstance(value, Mapping):
        return _is(kind, dict, Mapping) or ("_target_" in value and kind not in WORDS)
    return False


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool)


def _is(kind: Any, *wanted: Any) -> bool:
    return kind in wanted or get_origin(kind) in wanted


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _arguments(maker: Any) -> tuple[dict[str, Any], bool]:
    """The annotations of a maker's arguments, and of what a function returns; whether it takes others besides."""
    hints: dict[str, Any] = {}
    open_ended = True
    makers = [maker]
    if inspect.isclass(maker):  # a class that takes **others hands them on to the next
        makers = [vars(base)["__init__"] for base in maker.__mro__ if "__init__" in vars(base)]
    for each in makers:
        if each is object.__init__:  # ours hand all on to it; a class of a user's own may have taken others
            return hints, bool(hints) and not maker.__module__.startswith("hmtl.")
        try:
            parameters = inspect.signature(each).parameters
            hints = {**dict.fromkeys(parameters, Any), **get_type_hints(each), **hints}
        except (TypeError, ValueError, NameError, AttributeError):  # it cannot be looked into
            return {}, True
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if not open_ended:
            break
    for name in ("self", "return") if inspect.isclass(maker) else ():
        hints.pop(name, None)
    return hints, open_ended
