"""How a plain loop calls a module, and what it reads of the module's output."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hmtl.data.items import TARGETS
from hmtl.errors import ConfigError, DataError, HmtlError, reason


def arguments(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `module(**inputs)` for a dictionary, `module(*inputs)` for a list, or `module(inputs)`.

    Entries of a dictionary whose names the module does not have are left out. A module that does not take several
    arguments gets the dictionary or the list itself.
    """
    tries: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    if isinstance(inputs, Mapping) or type(inputs) in (list, tuple):
        taker = inspect.signature(module.forward)
        if isinstance(inputs, Mapping):
            known = {name: each for name, each in inputs.items() if name in taker.parameters}
            tries = [((), dict(inputs)), *([((), known)] if known else [])]
        else:
            tries = [(tuple(inputs), {})]
        for args, named in tries:
            try:
                taker.bind(*args, **named)
            except TypeError:
                continue
            return args, named
    return (inputs,), {}


def with_targets(module: nn.Module, inputs: Any, y: Any) -> Any:
    """Return inputs with their targets, if any, for a module that computes its loss: by the name that it takes."""
    if y is None:
        return inputs
    if isinstance(inputs, Mapping):
        known = inspect.signature(module.forward).parameters
        return {**inputs, next((name for name in TARGETS if name in known), TARGETS[0]): y}
    return [*(inputs if type(inputs) in (list, tuple) else [inputs]), y]


def called(module: nn.Module, inputs: Any) -> Any:
    """Return the module's output for inputs, see `arguments`."""
    args, named = arguments(module, inputs)
    return module(*args, **named)


def without_gradients(call: Callable[[], Any]) -> Any:
    """Return what a call returns without gradients, if it computes none itself, as a penalty on them does."""
    try:
        with torch.no_grad():
            return call()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return call()


@contextmanager
def on_rows(whose: str) -> Iterator[None]:
    """Say whose rows they were if a Dataset, a module or its loss fails on them.

    Raises:
        DataError: they raised an error; what the memory is too small for stays as it is.
    """
    try:
        yield
    except (HmtlError, MemoryError, torch.OutOfMemoryError):
        raise
    except IndexError as error:
        raise DataError(
            f"Rows of {whose} do not suit the module or its loss ({str(error).rstrip('.')}). Number labels and ids "
            "from 0, each below the number of the module's scores (num_labels) or embeddings."
        ) from error
    except Exception as error:  # the parts are any code
        raise DataError(
            f"The module, its loss or the Dataset fails on rows of {whose} ({reason(error)}). Give all users rows of "
            "one kind, for training and for tests."
        ) from error


def scores_of(output: Any) -> Tensor:
    """Return the predictions in an output: a tensor, its `logits`, or the first entry but a loss.

    Raises:
        ConfigError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        scores: Tensor = output.logits
        return scores
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        parts = [output["logits"]]
    if isinstance(parts, list | tuple):
        for part in parts:
            if isinstance(part, Tensor) and part.ndim:
                return part
    raise ConfigError(
        f"The model returns a {type(output).__name__} without predictions. Return a tensor, a tuple that begins "
        "with one, or an object with `logits`."
    )


def loss_of(output: Any) -> Tensor | None:
    """Return the loss that a module has computed itself, if it has."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        parts = output if type(output) is tuple else (output,)
        loss = next((each for each in parts if isinstance(each, Tensor) and not each.ndim), None)
    return loss if isinstance(loss, Tensor) else None
