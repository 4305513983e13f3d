"""Note and restore what a module keeps outside its parameters and buffers."""

import copy
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

HOLDERS = list, dict, set, deque
TORCH_OWN = vars(nn.Module()).keys()  # attributes of every module


class Notes:
    """The attributes of a module and its parts: whether they have been changed since, and how they were.

    These are the attributes themselves, the contents of lists, dictionaries, sets and deques among them, and the
    numbers of tensors that are neither parameters nor buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = [vars(part) for part in module.modules()]
        own = [{name: each for name, each in part.items() if name not in TORCH_OWN} for part in self._parts]
        self._before = own
        self._contents = [
            {name: copy.copy(each) for name, each in part.items() if isinstance(each, HOLDERS)} for part in own
        ]
        tensors = {id(each): each for part in own for each in part.values() if isinstance(each, Tensor)}
        self._numbers = [(each, each._version, each.detach().clone()) for each in tensors.values()]

    @property
    def are_changed(self) -> bool:
        """Whether the module has written into its attributes since they were noted or restored."""
        return any(
            {name for name in part if name not in TORCH_OWN} != before.keys()
            or any(part[name] is not each for name, each in before.items() if name not in contents)
            or any([*map(id, _held(part[name]))] != [*map(id, _held(each))] for name, each in contents.items())
            for part, before, contents in zip(self._parts, self._before, self._contents, strict=True)
        ) or any(each._version != version or each.shape != numbers.shape for each, version, numbers in self._numbers)

    def restore(self) -> None:
        """Restore the attributes that were noted."""
        for part, before, contents in zip(self._parts, self._before, self._contents, strict=True):
            for name in [name for name in part if name not in TORCH_OWN and name not in before]:
                del part[name]
            before.update({name: copy.copy(each) for name, each in contents.items()})
            part.update(before)
        with torch.no_grad():
            for each, version, numbers in self._numbers:
                if each.shape != numbers.shape:  # its memory may be another one, too
                    each.data = numbers.clone()
                elif each._version != version:
                    each.copy_(numbers)
        self._numbers = [(each, each._version, numbers) for each, _, numbers in self._numbers]


def _held(holder: Any) -> Iterable[Any]:
    """Return what a list, dictionary, set or deque holds; nothing of what was put in its place."""
    if not isinstance(holder, HOLDERS):
        return ()
    return chain(*holder.items()) if isinstance(holder, dict) else holder
