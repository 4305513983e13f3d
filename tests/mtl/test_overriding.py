"""What classes define below a base class."""

from hmtl.mtl.overriding import defined_below


class Base:
    def method(self) -> None: ...


class Child(Base):
    def method(self) -> None: ...


class Mixin:
    def method(self) -> None: ...


class Mixed(Mixin, Base): ...


class Late(Base, Mixin): ...


def test_a_method_of_a_class_before_the_base_counts() -> None:
    assert "method" in defined_below(Base, Child)
    assert "method" in defined_below(Base, type("Grandchild", (Child,), {}))
    assert "method" in defined_below(Base, Mixed)


def test_a_method_of_the_base_or_behind_it_does_not_count() -> None:
    assert "method" not in defined_below(Base, Base)
    assert "method" not in defined_below(Base, type("Unchanged", (Base,), {}))
    assert "method" not in defined_below(Base, Late)
    assert "method" not in defined_below(Child, Child)
