"""Messages name the codec that made their rows; rows of the same length that name another are refused."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from adding import Terms, terms
from apart import Apart

from hmtl.communication import IVs, SumsOfRows
from hmtl.communication.codecs.few_bit_blocks import Blocks
from hmtl.communication.codecs.formats import BYTES
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.messages import COMBINATIONS, IVS, MODELS, Message
from hmtl.testing.scripted import ScriptedUsers
from hmtl.topology import symmetric

K, ROUNDS = 4, 3
T = symmetric(K=K, H=4, r=2)


class Halves(Blocks):
    """A quantizer of a user's own."""


def played(recipe: Recipe, change=lambda node, message: message) -> tuple[dict[str, set[str]], list]:
    """The formats of messages with rows, by kind, and the users' models."""
    if recipe.adds:
        users = Terms([terms(n, K) for n in range(ROUNDS)], [set()] * ROUNDS)
    else:
        ivs = [torch.from_numpy(np.random.default_rng(n).normal(size=(K, 65))) for n in range(ROUNDS)]
        users = ScriptedUsers(ivs, [set()] * ROUNDS, 1)
    apart, named = Apart(T, [users], recipe), defaultdict(set)

    def noting(node: str, message: Message) -> Message:
        if message.kind in (IVS, MODELS, COMBINATIONS):
            named[message.kind].add(message.format)
        return change(node, message)

    for round in range(ROUNDS):
        apart.play(round, change=noting)
    return dict(named), users.models


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        (IVs("uncoded"), {"float64"}),
        (IVs("uncoded", wire="bfloat16"), {"bfloat16"}),
        (IVs("uncoded", wire="int4"), {"blocks4"}),
        (IVs("uncoded", wire=Halves(4)), {"own"}),
        (SumsOfRows(aggregators="server"), {"int64"}),
        (SumsOfRows(aggregators="server", wire="int4"), {"int64", "int4"}),
    ],
    ids=["floats", "narrow", "blocks", "own", "words", "few-bits"],
)
def test_rows_name_their_codec_on_every_hop(recipe: Recipe, formats: set[str]) -> None:
    """The first sums of few bits travel whole, in words of 64 bits; combinations are bytes of several rows."""
    assert played(recipe)[0] == {IVS: formats, MODELS: formats}


def test_combinations_are_bytes() -> None:
    named, _ = played(IVs(aggregators="all", wire="int4"))
    assert named == {IVS: {"blocks4"}, COMBINATIONS: {BYTES}, MODELS: {"blocks4"}}


@pytest.mark.parametrize(
    ("recipe", "other"),
    [(IVs("uncoded"), "int64"), (IVs("uncoded", wire="int4"), "int4"), (SumsOfRows(aggregators="server"), "float64")],
    ids=["floats", "blocks", "words"],
)
@pytest.mark.parametrize(
    ("kind", "reader"), [(IVS, "relay"), (IVS, "server"), (MODELS, "relay"), (MODELS, "host")], ids=str
)
def test_rows_as_long_that_name_another_codec_are_refused(recipe: Recipe, other: str, kind: str, reader: str) -> None:
    def change(node: str, message: Message) -> Message:
        return replace(message, format=other) if message.kind == kind and node.startswith(reader) else message

    assert not played(recipe, change)[1]
