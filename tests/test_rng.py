"""Named generators: the same name the same stream, another name another one."""

from itertools import product

from hmtl.rng import generator


def test_each_name_has_its_own_stream() -> None:
    names = [(seed, word, round) for seed, word, round in product((0, 1), ("order", "participation", "data"), (0, 1))]
    drawn = [generator(*name).integers(2**62) for name in names]
    assert len(set(drawn)) == len(names)
    assert drawn == [generator(*name).integers(2**62) for name in reversed(names)][::-1]
