"""Parts of a run: a `_target_`, whose arguments are validated against its signature, becomes an object."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

from hydra.errors import HydraException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from hmtl.errors import ConfigError, HmtlError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

NO_MODEL = (
    "algorithm.model is not a setting of mocha, cocoa and local, which train linear models. Leave it out, or choose a "
    "learner of networks, such as algorithm=fedavg or local_networks."
)
WRONG_VALUE = r"(?:Value '.*' .*|field '\w+' )(Integer|Float|bool|is not Optional).*"  # as OmegaConf says it
WANTED = {"Integer": "a whole number", "Float": "a number", "bool": "true or false", "is not Optional": "a value"}
USUAL_NAMES = {
    **dict.fromkeys(("lr", "learning_rate"), "solver.step"),
    **dict.fromkeys(("epochs", "local_epochs", "num_epochs"), "solver.epochs"),
    **dict.fromkeys(("batch", "batch_size"), "solver.batch"),
    **dict.fromkeys(("optimizer", "optim", "momentum", "weight_decay", "scheduler", "clip"), "solver"),
    **dict.fromkeys(("criterion", "loss_fn"), "loss"),
    "num_rounds": "rounds",
    "random_state": "seed",
}
"""Settings by the names that they have in other libraries."""
HYDRAS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Keys that Hydra's `instantiate` reads."""


def given(part: Any, make: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Return what stands in a configuration for the object `part`, or for what `make` returns when it is called."""

    def given(*arguments: Any, **objects: Any) -> Any:  # a function, which Hydra does not copy as it does data
        return make(*arguments, **objects) if make else part

    given.__qualname__ = description(part)  # it stands for the part in checkpoints, reports and errors
    return {"_target_": f"{__name__}.call", "given": given}


def description(part: Any, deep: bool = True) -> str:
    """Return the name of a part and, if `deep`, its settings but usual ones, also those of modules below it."""
    if isinstance(part, int | float | str):
        return str(part)
    if isinstance(part, list | tuple) and all(isinstance(each, int | float | str) for each in part):
        return f"[{', '.join(map(str, part))}]"
    if hasattr(part, "__qualname__"):  # a class or a function
        return f"{part.__module__}.{part.__qualname__}"
    held: dict[Any, Any] = {**getattr(part, "__dict__", {}), **(part._modules if _is_module(part) else {})}
    usual = {key: parameter.default for key, parameter in parameters(type(part))[0].items()}
    held |= {key: held[f"_{key}"] for key in usual if f"_{key}" in held}
    name = description(type(part))
    if isinstance(part, partial):
        name, held = description(part.func), {**dict(enumerate(part.args)), **part.keywords}
    beside = ("training",) if _is_module(part) else ("model", "solver", "regularized")  # of a learner in use
    told = {str(key): each for key, each in held.items() if each is not None and key not in beside and deep}
    words = [
        f"{key}={description(each, isinstance(each, partial) or _is_module(each))}"
        for key, each in told.items()
        if key[0] != "_"
        and not isinstance(getattr(type(part), key, None), cached_property)
        and not (isinstance(each, int | float | str) and each == usual.get(key))
    ]
    return f"{name}({', '.join(words)})" if words else name


def _is_module(part: Any) -> bool:
    """Return whether a part is a module of torch, which this module does not import, as loading it takes long."""
    return isinstance(getattr(part, "_modules", None), dict)


def call(*arguments: Any, given: Callable[..., Any], **objects: Any) -> Any:
    """Return a part that is `given`."""
    return given(*arguments, **objects)


def make(name: str, part: Mapping[str, Any], kinds: tuple[type, ...], **objects: Any) -> Any:
    """Return the object that a part describes, with further arguments `objects`, or name the wrong setting.

    `name` is the part's place in the configuration. `part` holds `_target_` and its arguments as plain values. The
    object has to be an instance of one of `kinds`.
    """
    checked = check(name, part, kinds)
    target = part["_target_"]
    known, _ = parameters(locate(f"{name}._target_", target))
    required = [key for key, parameter in known.items() if parameter.default is parameter.empty]
    missing = [key for key in required if key not in checked and key not in objects]
    if missing and "_args_" not in part:
        raise ConfigError(f"{name}.{missing[0]} is missing: {target} needs it. Set it on the command line.")
    try:
        made = instantiate(checked, _partial_=True, _convert_="all")(**objects)
    except HydraException as error:
        if isinstance(error.__cause__, HmtlError):
            raise error.__cause__ from None
        raise ConfigError(f"{name}: {error}") from error
    except SystemExit as error:
        raise ConfigError(f"{name}._target_={target} ends the process. Set it to what makes a part.") from error
    if not isinstance(made, kinds):
        raise _wrong_kind(name, part, kinds)
    return made


def check(name: str, part: Mapping[str, Any], kinds: tuple[type, ...] = ()) -> dict[str, Any]:
    """Return a part, and the parts below it, with arguments in the types that the targets' annotations ask for.

    A part below it whose `_target_` is None becomes None.

    Raises:
        ConfigError: the target cannot be imported, makes none of the `kinds`, or an argument does not fit.
    """
    from pydantic import ValidationError  # late: --help need not wait for it

    target = locate(f"{name}._target_", part.get("_target_"))
    made = target if inspect.isclass(target) else _hints(target).get("return")
    if kinds and inspect.isclass(made) and made is not Any and not issubclass(made, kinds):
        raise _wrong_kind(name, part, kinds)
    part = {key: None if is_part(value) and value["_target_"] is None else value for key, value in part.items()}
    nested = {key: check(f"{name}.{key}", value) for key, value in part.items() if is_part(value)}
    known, is_open = parameters(target)
    if unknown := [key for key in part if key not in (*known, *HYDRAS) and not is_open]:
        raise ConfigError(no_setting(f"{name}.{unknown[0]}", [f"{name}.{key}" for key in known]))
    plain = {key: value for key, value in part.items() if key in known and key not in nested}
    fields = tuple((key, known[key].annotation) for key in plain)
    try:
        validated = _model(fields).model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_first(name, plain, error)) from error
    return {**part, **nested, **{key: getattr(validated, key) for key in plain}}


def is_part(value: Any) -> bool:
    """Return whether a value describes an object."""
    return isinstance(value, Mapping) and "_target_" in value


@lru_cache  # each process of a run checks the same settings, and several times
def _model(fields: tuple[tuple[str, Any], ...]) -> "type[BaseModel]":
    """Return a pydantic model with these fields: names and annotations."""
    from pydantic import ConfigDict, create_model

    rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, str_min_length=1, protected_namespaces=())
    required: Any = {key: (annotation, ...) for key, annotation in fields}
    return create_model("Arguments", __config__=rules, **required)


def _first(name: str, arguments: Mapping[str, Any], error: "ValidationError") -> str:
    """Return one line on the first argument that does not fit: `topology.r=abc: input should be a valid number`."""
    errors = error.errors(include_url=False)
    key = errors[0]["loc"][0]
    reasons = dict.fromkeys(each["msg"] for each in errors if each["loc"][0] == key)  # a union has one for each type
    text = " or ".join(reason[0].lower() + reason[1:] for reason in reasons)
    return f"{name}.{key}={arguments[str(key)]}: {text}."


def locate(name: str, target: Any) -> Any:
    """Return the class or function with that full name, or raise ConfigError."""
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{name}={target}: set it to the full name of a class or function, such as hmtl.mtl.Hinge.")
    module, _, attribute = target.rpartition(".")
    try:
        thing = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module of a user's own may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{name}={target} cannot be imported ({reason}). Check the name and PYTHONPATH.") from error
    if not callable(thing):
        raise ConfigError(f"{name}={target} is a {type(thing).__name__}. Set it to a class or function.")
    return thing


def takes(target: str, argument: str) -> bool:
    """Return whether a target has a parameter of that name, or takes any."""
    known, is_open = parameters(locate("_target_", target))
    return is_open or argument in known


def needs(target: str, argument: str) -> bool:
    """Return whether a target has a parameter of that name without a default."""
    known, _ = parameters(locate("_target_", target))
    return argument in known and known[argument].default is inspect.Parameter.empty


def accepted(target: str, **objects: Any) -> dict[str, Any]:
    """Return those of the further arguments that a target takes, so that your own function need not name them all.

    None counts as not given.
    """
    return {name: each for name, each in objects.items() if each is not None and takes(target, name)}


def parameters(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters of a target by name, and whether it takes others besides.

    A class that takes further keywords hands them to its base class, whose parameters are then added; those of
    hmtl hand everything on.
    """
    known: dict[str, inspect.Parameter] = {}
    makers = [target]
    if inspect.isclass(target):
        makers = [vars(base)["__init__"] for base in target.__mro__ if base is not object and "__init__" in vars(base)]
    for maker in makers:
        try:
            signature = inspect.signature(maker).parameters
        except (TypeError, ValueError):  # a builtin without a signature
            return known, True
        hints = _hints(maker)
        for key, parameter in signature.items():
            if key != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                known.setdefault(key, parameter.replace(annotation=hints.get(key, Any)))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.values()):
            return known, False
    return known, bool(makers) and not getattr(target, "__module__", "").startswith("hmtl.")


def _hints(maker: Any) -> dict[str, Any]:
    try:
        return get_type_hints(maker)
    except (TypeError, NameError, AttributeError):  # not annotated, or with names that only a type checker imports
        return {}


def _wrong_kind(name: str, part: Mapping[str, Any], kinds: Collection[type]) -> ConfigError:
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if "given" in part:
        return ConfigError(
            f"{name}={part['given'].__qualname__} is not a {wanted}. Give one, or a name in conf/{name}."
        )
    remedy = "Choose a part of this group, see --help."
    if name == "dataset":
        remedy = "Return one Dataset or Task for each user, such as hmtl.data.deal makes of one Dataset."
    return ConfigError(f"{name}._target_={part['_target_']} does not make a {wanted}. {remedy}")


def no_setting(setting: str, known: Collection[str]) -> str:
    """Return the message that there is no such setting, and which one may be meant."""
    if setting == "algorithm.model":
        return NO_MODEL
    parent, _, last = setting.rpartition(".")
    if (meant := USUAL_NAMES.get(last)) and parent in ("", "solver"):
        is_own = {"solver.given", "solver.optimizer"} & {*known}
        remedy = "Make it a setting of the solver." if is_own else "See --help for the settings."
        remedy = f"Did you mean {meant}?" if meant in known else remedy
        return f"{setting} is not a setting. {remedy}"
    beside = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent}
    elsewhere = [each for each in known if each.rpartition(".")[2] == last and each != setting]
    remedy = f"Did you mean {elsewhere[0]}?" if elsewhere else "See --help for the settings."
    if setting == "aggregators" and "fail" in known:
        remedy = "A plan compares the nodes that can aggregate: leave this setting out."
    return f"{setting} is not a setting. {did_you_mean(last, beside, remedy, beside.__getitem__)}"


def with_parts(settings: Mapping[Any, Any]) -> list[str]:
    """Return the names of settings, and those of the settings of each part among them, such as solver.epochs."""
    parts = {name: part for name, part in settings.items() if is_part(part)}
    return [*map(str, settings), *(f"{name}.{each}" for name, part in parts.items() for each in part)]


def of_hydra(error: Exception) -> str:
    """Return Hydra's message in one line; for an unknown setting or choice, a message with what may be meant."""
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        remedy = did_you_mean(choice, error.options, f"Choose one of {', '.join(error.options)}.")
        return f"{group}={choice} is unknown. {remedy}"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        key = str(cause.full_key)
        above = key.rpartition(".")[0]
        beside: Any = OmegaConf.to_container(cause.parent_node, resolve=False)
        message = no_setting(key, [f"{above}.{each}" if above else each for each in with_parts(beside)])
        if not above or "Did you mean" in message or message == NO_MODEL:  # Hydra's says how a part gets an argument
            return message
    text = re.split(
        r"\s+full_key: |\s+Config search path", f"{error}: {cause}" if cause not in (None, error) else str(error)
    )[0]
    text = re.sub(WRONG_VALUE, lambda found: f"this is not {WANTED[found[1]]}. Give one.", text)
    return " ".join(text.removeprefix("Error merging override ").split())
