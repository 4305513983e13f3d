"""What an object prints as: its class and its settings, in one line."""

import re
from inspect import signature
from typing import ClassVar

MAX_WIDTH = 120  # characters of one value


class Described:
    """An object that prints as its class with the attributes in `_shown`, or with its constructor's unusual arguments.

    Arguments that the object does not keep, by their names or as `_name`, are left out.
    """

    _shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        usual = {name: each.default for name, each in signature(type(self)).parameters.items()}
        words = list[str]()
        for key in self._shown or usual:
            value = vars(self).get(key, getattr(self, f"_{key}", getattr(self, key, usual.get(key))))
            if self._shown or repr(value) != repr(usual[key]):
                text = re.sub(" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))
                words.append(f"{key}={text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 3] + '...'}")
        return f"{type(self).__name__}({', '.join(words)})"
