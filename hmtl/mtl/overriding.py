"""Which methods a subclass defines: what is known of a loss or a regularizer follows from them."""


def defined_below(base: type, cls: type) -> set[str]:
    """Return the names that `cls`, or a class from which it inherits before `base`, defines.

    Args:
        base: a base class of `cls`; nothing is below it if it is `cls` itself.
        cls: a class that inherits from `base`.
    """
    order = cls.__mro__
    return {name for each in order[: order.index(base)] for name in vars(each)}
