"""What a plain PyTorch loop trains, `Federation` trains to the same numbers: public idioms of modules and Datasets.

One user, all rows in one minibatch: each idiom states the loss of a batch as a loop would compute it.
"""

import copy
import random
from functools import partial
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

import hmtl
from hmtl.data import from_datasets
from hmtl.distributed.values import from_bytes, to_bytes
from hmtl.errors import CheckpointError, ConfigError, DataError
from hmtl.mtl import (
    CrossEntropy,
    FedAvg,
    FedPer,
    LocalSGD,
    LocalTrainer,
    NetworkAlgorithm,
    Problem,
    Ridge,
    TorchLoss,
    TorchTrainer,
)
from hmtl.topology import any_r, symmetric

ADAMW = TorchTrainer(partial(torch.optim.AdamW, lr=0.01, eps=1e-3))  # eps: for parameters whose gradient is rounding
N, C, T, WORDS = 16, 3, 6, 30


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(n, *shape, high=WORDS):
    return torch.randint(1, high, (n, *shape), generator=torch.Generator().manual_seed(1))


def labels(n):
    return torch.arange(n) % C


class Listed(Dataset):
    """Items of any kind, from a function of their number."""

    def __init__(self, n, item):
        self.n, self.item = n, item

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.item(i)


class Called(nn.Module):
    """Parts, and what `forward` does with them."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, *args):
        return self._forward(self, *args)


class View(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.conv, self.out, self.flatten = nn.Conv2d(2, 4, 3), nn.Linear(4 * 9, C), flatten

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.out(self.flatten(x))


def encoder():
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)


class Text(nn.Module):
    def __init__(self, reader=None):
        super().__init__()
        self.embedding, self.reader, self.out = nn.Embedding(WORDS, 8), reader, nn.Linear(8, C)

    def forward(self, x):
        x = self.embedding(x)
        return self.out(x.mean(1) if self.reader is None else self.reader(x)[0][:, -1])


class Tied(nn.Module):
    """A language model whose last layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.reader = nn.Embedding(WORDS, 8), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, WORDS, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.reader(self.embedding(x))[0])


class Packed(nn.Module):
    def __init__(self, outputs=C):
        super().__init__()
        self.embedding, self.reader = nn.Embedding(WORDS, 8), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, outputs)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embedding(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.out(self.reader(packed)[1][0])


class Attended(nn.Module):
    """Takes the entries of a dictionary, and computes its loss if it gets labels."""

    def __init__(self, own=False):
        super().__init__()
        self.embedding, self.out, self.own = nn.Embedding(WORDS, 8), nn.Linear(8, C), own

    def forward(self, input_ids, attention_mask=None, **rest):
        mask = attention_mask[..., None].to(self.out.weight.dtype)
        logits = self.out((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))
        if self.own and "labels" in rest:
            return {"loss": F.cross_entropy(logits, rest["labels"], label_smoothing=0.1), "logits": logits}
        return {"logits": logits}


class Coder(nn.Module):
    """Codes rows by fewer numbers, and returns its loss."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(6, 2), nn.Linear(2, 6)

    def forward(self, x):
        again = self.up(self.down(x))
        return {"loss": F.mse_loss(again, x), "again": again}


class Alone(nn.Module):
    """Returns a loss, and no predictions."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, C)

    def forward(self, x, target):
        return F.cross_entropy(self.out(x), target)


class Tempered(nn.Module):
    """Parameters of the shapes () and (0, 3), and numbers in pairs, which begin at an odd place."""

    def __init__(self):
        super().__init__()
        self.scale, self.none = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))
        self.pairs = nn.Parameter(draw(3, C, 2))

    def forward(self, x):
        return (torch.fft.rfft(x) @ torch.view_as_complex(self.pairs)).abs() * self.scale + self.none.sum()


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, C)

    def forward(self, x):
        assert x.dtype == torch.uint8
        return self.out(x.flatten(1).float() / 255)


class Notes(nn.Module):
    """Notes in attributes what a loop does not mind: calls, a mean, and its last output."""

    def __init__(self):
        super().__init__()
        self.out, self.calls, self.mean, self.last = nn.Linear(5, C), 0, torch.zeros(5), None
        self.seen, self.by_name = [], {"mean": torch.zeros(5)}

    def forward(self, x):
        if self.training:
            if not hasattr(self, "first"):
                self.first = x.mean(0).detach()
            self.seen.append(x.max(0).values.detach())
            self.by_name["mean"] = 0.5 * self.by_name["mean"] + 0.5 * x.mean(0).detach()
            x = x - 0.1 * self.first - 0.1 * self.seen[0] - 0.1 * self.by_name["mean"]
            self.calls, self.mean = self.calls + 1, 0.9 * self.mean + 0.1 * x.mean(0).detach()
            self.last = self.out(x - self.mean) / (1 + 0.1 * self.calls)
            return self.last
        return self.out(x)


class NotesInPlace(nn.Module):
    """Notes the first rows that it gets in any mode, and a running mean in a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.out, self.mean, self.first = nn.Linear(5, C), torch.zeros(5), None

    def forward(self, x):
        if self.first is None:
            self.first = x.mean(0).detach()
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
        return self.out(x - self.first - self.mean)


class Counts(nn.Module):
    """Scales rows by the first ones that it sees, and its output by the number of its calls; both are buffers."""

    def __init__(self):
        super().__init__()
        self.out, self.scale = nn.Linear(5, C), nn.Parameter(torch.ones(5))
        self.register_buffer("is_scaled", torch.tensor(False))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        if self.training:
            if not self.is_scaled:
                with torch.no_grad():
                    self.scale.copy_(1 / x.std(0))
            self.is_scaled.fill_(True)
            self.calls += 1
        return self.out(x * self.scale) / (1 + 0.1 * self.calls)


class Scaled(nn.Module):
    """Returns scores and their scale, and takes labels that it leaves alone."""

    def __init__(self):
        super().__init__()
        self.out, self.scale = nn.Linear(5, C), nn.Parameter(torch.tensor(0.5))

    def forward(self, x, label=None):
        return self.scale.exp() * self.out(x), self.scale.exp()


class Assigns(nn.Module):
    """Assigns a new tensor to a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, C)
        self.register_buffer("mean", torch.zeros(5), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.mean(0).detach()
        return self.out(x - self.mean)


class Normed(nn.Module):
    """Gives the rows of its weight the norm 1 before it uses them."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, C)

    def forward(self, x):
        self.out.weight.data = nn.functional.normalize(self.out.weight.data)
        return self.out(x).tanh()


class Follows(nn.Module):
    """Subtracts what a frozen layer returns, whose numbers follow those of another (He et al. 2020, MoCo)."""

    def __init__(self, in_place=False):
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, C)
        self.teacher, self.in_place = copy.deepcopy(self.first).requires_grad_(False), in_place

    def forward(self, x):
        for own, w in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
            if self.in_place:
                own.data.mul_(0.9).add_(w.data, alpha=0.1)
            else:
                own.data = 0.9 * own.data + 0.1 * w.data
        return self.out(self.first(x) - self.teacher(x))


class Observes(nn.Module):
    """Notes the range of its inputs in evaluation, too, as observers for quantization do."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, C)
        self.register_buffer("largest", torch.tensor(0.0))
        self.register_buffer("masked", torch.tensor(-torch.inf))  # which never changes

    def forward(self, x):
        self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
        return self.out(x / (1 + self.largest))


class Resizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, C)
        self.register_buffer("scale", torch.zeros(0))

    def forward(self, x):
        self.scale = torch.ones(5)
        return self.out(x * self.scale)


class Words(nn.Module):
    """Returns scores, and a loss if it gets targets."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)

    def forward(self, x, targets=None):
        scores = self.out(self.embedding(x))
        return scores, None if targets is None else of_words(scores, targets)


class Batch:
    """A batch as libraries for graphs make it: an object with attributes."""

    def __init__(self, items):
        x, y = zip(*items, strict=True)
        self.rows, self.y = torch.stack(x), torch.tensor(y)


def hooked_layer():
    """Layers with a hook that doubles the gradients of the first ones."""
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, C))
    module[2].register_full_backward_hook(lambda part, inputs, outputs: (inputs[0] * 2,))
    return module


def refers_to_itself(kind):
    module = Called(lambda m, x: m.head(m.function(x)), body=nn.Linear(5, 4), head=nn.Linear(4, C))
    if kind == "hook":
        module.function, module.seen = module.body, {}
        module.body.register_forward_hook(lambda part, inputs, output: module.seen.update(output=output))
    elif kind == "forward":
        module.function, first = module.body, module.forward
        module.forward = lambda x: 2 * first(x)
    elif kind == "default":
        module.function = lambda x, body=module.body: body(x)
    elif kind == "global":
        module.function = eval("lambda x: model.body(x)", {"model": module})
    elif kind == "frozen":
        module.body.requires_grad_(False).eval()
        module.function = lambda x, body=module.body: body(x)
    elif kind == "partial":
        module.function = partial(lambda x: module.body(x))
    else:
        module.function = torch.func.vmap(lambda x: module.body(x))
    return module


def with_function():
    """A network with a function that names a variable without a value."""

    def shifted(x, is_late=False):
        return x - shift if is_late else x

    if not shifted:
        shift = 1
    return Called(lambda m, x: m.out(m.function(x)), out=nn.Linear(5, C), function=shifted)


def buffered():
    module = Called(lambda m, x: m.out(x * m.mask), out=nn.Linear(5, C))
    module.register_buffer("mask", torch.arange(5.0))
    return module


def halves():
    """A frozen trunk in bfloat16, and a head in float32."""
    trunk = nn.Sequential(nn.Linear(5, 8), nn.GELU()).to(torch.bfloat16).requires_grad_(False)
    return Called(lambda m, x: m.head(m.trunk(x.to(torch.bfloat16)).float()), trunk=trunk, head=nn.Linear(8, C))


def padded(items):
    x, y = zip(*items, strict=True)
    return pad_sequence(list(x), batch_first=True), torch.tensor([len(each) for each in x]), torch.stack(y)


def padded_tags(items):
    x, y = zip(*items, strict=True)
    return pad_sequence(list(x), batch_first=True), pad_sequence(list(y), batch_first=True, padding_value=-100)


def cross_entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def by_entry(model, batch):
    return F.cross_entropy(model(batch["image"]), batch["label"])


def by_number(model, batch):
    x, y = batch
    return (model(x).squeeze(-1) - y.view(-1)).square().mean() / 2


def of_many(function):
    def loss(model, batch):
        x, y = batch
        return function(model(x), y)

    return loss


def of_words(p, y):
    return F.cross_entropy(p.flatten(0, 1), y.flatten())


def of_tags(p, y):
    return F.cross_entropy(p.transpose(1, 2), y, ignore_index=-100)


def of_both(outputs, targets):
    return F.cross_entropy(outputs[0], targets[0]) + F.mse_loss(outputs[1][:, 0], targets[1].float())


def of_distances(pair, y):
    distances = F.pairwise_distance(*pair)
    return (y * distances.square() + (1 - y) * F.relu(1 - distances)).mean()


def of_normals(output, y):
    mean, variance = output.chunk(2, -1)
    return F.gaussian_nll_loss(mean, y, F.softplus(variance) + 0.1)


def of_weights(p, y):
    return (p[:, 0] - torch.tensor([1.0, -2.0, 3.0])[y]).square().mean()


def of_booleans(p, y):
    """Fails for predictions without their last dimension."""
    return F.binary_cross_entropy_with_logits(p[:, 0], y.float())


def of_dicts(model, batch, own=False):
    if own:
        return model(**batch)["loss"]
    y = batch.pop("labels")
    return F.cross_entropy(model(**batch)["logits"], y)


def dicts(n):
    x, y, mask = words(n, T), labels(n), torch.ones(T, dtype=torch.int64)
    return Listed(n, lambda i: {"input_ids": x[i], "attention_mask": mask, "labels": y[i]})


def ragged(n, y=None):
    x, y = words(n, T), labels(n) if y is None else y
    return DataLoader(Listed(n, lambda i: (x[i, : 2 + i % (T - 2)], y[i])), collate_fn=padded)


def by_image(n):
    x = draw(n, 5)
    return Listed(n, lambda i: {"image": x[i], "label": i % C})


def sums_by_name(x):
    return Listed(len(x), lambda i: {"x": x[i], "y": x[i].sum()})


def joined(items):
    x, y = zip(*items, strict=True)
    return torch.stack(x), torch.cat(y)


def asserts(module, x):
    assert x is None


def longest_first(data):
    """Data whose batches begin with the longest rows, as packed sequences may need them."""
    collate = data.collate_fn
    return DataLoader(data.dataset, collate_fn=lambda rows: collate(sorted(rows, key=lambda row: -len(row[0]))))


def tagged(n):
    x, y = words(n, T), words(n, T, high=C)
    cut = [slice(0, 2 + i % (T - 2)) for i in range(n)]
    return DataLoader(Listed(n, lambda i: (x[i, cut[i]], y[i, cut[i]])), collate_fn=padded_tags)


def floats(*shape, y=labels):
    return lambda n: TensorDataset(draw(n, *shape), y(n))


def tokens(n):
    return TensorDataset(words(n, T), labels(n))


def numbers(n):
    return draw(n, seed=3)


def mlp(outputs=C, *, hidden=6, norm=None):
    return nn.Sequential(nn.Linear(5, hidden), *([norm] if norm else []), nn.ReLU(), nn.Linear(hidden, outputs))


def heads(n):
    x = draw(n, 5)
    return Listed(n, lambda i: ((x[i], x[i] * 2), i % C))


def rounded(x=None):
    """Return a network that rounds its hidden layer, on a scale that follows its rows; x are the first ones."""
    observer = torch.ao.quantization.MovingAverageMinMaxObserver
    module = nn.Sequential(nn.Linear(5, 8), torch.ao.quantization.FakeQuantize(observer), nn.Linear(8, C))
    if x is not None:
        module(x)
    return module


IDIOMS = {
    "view": (lambda: View(lambda x: x.view(x.size(0), -1)), floats(2, 8, 8), cross_entropy, {}),
    "reshape": (lambda: View(lambda x: x.reshape(len(x), -1)), floats(2, 8, 8), cross_entropy, {}),
    "embedding": (Text, tokens, cross_entropy, {}),
    "tied": (Tied, lambda n: TensorDataset(words(n, T), words(n, T)), of_many(of_words), {"loss": of_words}),
    "gru": (lambda: Text(nn.GRU(8, 8, batch_first=True)), tokens, cross_entropy, {}),
    "transformer": (
        lambda: Text(Called(lambda m, x: (m.layer(x),), layer=encoder())),
        tokens,
        cross_entropy,
        {},
    ),
    "packed": (Packed, ragged, lambda m, b: F.cross_entropy(m(*b[:2]), b[2]), {}),
    "tags": (
        lambda: Called(lambda m, x: m.out(m.e(x)), e=nn.Embedding(WORDS, 8), out=nn.Linear(8, C)),
        tagged,
        of_many(of_tags),
        {"loss": of_tags},
    ),
    "dictionaries": (Attended, dicts, of_dicts, {}),
    "own loss": (lambda: Attended(own=True), dicts, partial(of_dicts, own=True), {}),
    "two inputs": (
        lambda: Called(lambda m, a, b: m.out(a * b), out=nn.Linear(5, C)),
        heads,
        lambda m, b: F.cross_entropy(m(*b[0]), b[1]),
        {},
    ),
    "three tensors": (
        lambda: Called(lambda m, a, b: m.out(a + b), out=nn.Linear(5, C)),
        lambda n: TensorDataset(draw(n, 5), draw(n, 5, seed=2), labels(n)),
        lambda m, b: F.cross_entropy(m(*b[:2]), b[2]),
        {},
    ),
    "multi-label": (
        partial(mlp, 4),
        floats(5, y=lambda n: (draw(n, 4, seed=4) > 0).float()),
        of_many(nn.BCEWithLogitsLoss()),
        {"loss": nn.BCEWithLogitsLoss()},
    ),
    "column": (partial(mlp, 1), floats(5, y=lambda n: draw(n, 1, seed=5)), by_number, {}),
    "squeezed": (lambda: nn.Sequential(mlp(1), nn.Flatten(0)), floats(5, y=numbers), by_number, {}),
    "three numbers": (mlp, floats(5, y=lambda n: draw(n, 3, seed=5)), of_many(nn.MSELoss()), {"loss": nn.MSELoss()}),
    "integer numbers": (partial(mlp, 1), floats(5, y=lambda n: torch.arange(n) * 2), by_number, {}),
    "absolute error": (
        partial(mlp, 1),
        floats(5, y=numbers),
        lambda m, b: F.l1_loss(m(b[0])[:, 0], b[1]),
        {"loss": nn.L1Loss()},
    ),
    "two classes, one score": (
        partial(mlp, 1),
        floats(5, y=lambda n: torch.arange(n) % 2),
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0])[:, 0], b[1].float()),
        {},
    ),
    "smoothed": (
        mlp,
        floats(5),
        of_many(nn.CrossEntropyLoss(label_smoothing=0.2)),
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.2)},
    ),
    "more classes": (partial(mlp, 7), floats(5), cross_entropy, {}),
    "bfloat16": (
        lambda: mlp().to(torch.bfloat16),
        lambda n: TensorDataset(draw(n, 5).bfloat16(), labels(n)),
        cross_entropy,
        {},
    ),
    "bfloat16 trunk": (halves, floats(5), cross_entropy, {}),
    "float64": (lambda: mlp().double(), lambda n: TensorDataset(draw(n, 5).double(), labels(n)), cross_entropy, {}),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(C)), floats(2, 3), cross_entropy, {}),
    "batch norm": (lambda: mlp(norm=nn.BatchNorm1d(6)), floats(5), cross_entropy, {}),
    "group norm": (lambda: mlp(norm=nn.GroupNorm(2, 6)), floats(5), cross_entropy, {}),
    "weight norm": (lambda: weight_norm(nn.Linear(5, C)), floats(5), cross_entropy, {}),
    "tuple": (
        lambda: Called(lambda m, x: (m.out(x), x), out=nn.Linear(5, C)),
        floats(5),
        lambda m, b: F.cross_entropy(m(b[0])[0], b[1]),
        {},
    ),
    "buffer": (buffered, floats(5), cross_entropy, {}),
    "uint8": (
        Quantized,
        lambda n: TensorDataset(words(n, 3, 2, 2, high=256).to(torch.uint8), labels(n)),
        cross_entropy,
        {},
    ),
    "arrays": (mlp, lambda n: Listed(n, lambda i: (draw(n, 5)[i].numpy(), i % C)), cross_entropy, {}),
    "a list": (mlp, lambda n: [(x, k % C) for k, x in enumerate(draw(n, 5))], cross_entropy, {}),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(5, C)), floats(5), cross_entropy, {}),
    "other entries": (
        Attended,
        lambda n: Listed(n, lambda i: {"input_ids": words(n, T)[i], "attention_mask": torch.ones(T), "target": i % C}),
        lambda m, b: F.cross_entropy(m(b["input_ids"], b["attention_mask"])["logits"], b["target"]),
        {},
    ),
    "no targets": (
        Coder,
        lambda n: Listed(n, lambda i: {"x": draw(n, 6)[i]}),
        lambda m, b: m(**b)["loss"],
        {},
    ),
    "several targets": (
        lambda: Called(lambda m, x: (m.out(x), m.level(x)), out=nn.Linear(5, C), level=nn.Linear(5, 1)),
        lambda n: Listed(n, lambda i: (draw(n, 5)[i], (i % C, float(i)))),
        of_many(of_both),
        {"loss": of_both},
    ),
    "booleans": (
        partial(mlp, 1),
        lambda n: Listed(n, lambda i: (draw(n, 5)[i], i % 2 == 0)),
        of_many(of_booleans),
        {"loss": of_booleans},
    ),
    "a loss alone": (
        Alone,
        lambda n: Listed(n, lambda i: {"x": draw(n, 5)[i], "target": i % C}),
        lambda m, b: m(**b),
        {},
    ),
    "a loss of all outputs": (
        lambda: Called(lambda m, a, b: (m.out(a), m.out(b)), out=nn.Linear(5, 4)),
        lambda n: TensorDataset(draw(n, 5), draw(n, 5, seed=2), (torch.arange(n) % 2).float()),
        lambda m, b: of_distances(m(*b[:2]), b[2]),
        {"loss": of_distances},
    ),
    "shapes": (Tempered, floats(5), cross_entropy, {}),
    "one number": (
        lambda: Called(lambda m, x: m.out(x[:, None]), out=nn.Linear(1, C)),
        lambda n: TensorDataset(draw(n), labels(n)),
        cross_entropy,
        {},
    ),
    "a column for an own loss": (
        partial(mlp, 2),
        floats(5, y=lambda n: draw(n, 1, seed=5)),
        of_many(of_normals),
        {"loss": of_normals},
    ),
    "integers for an own loss": (partial(mlp, 1), floats(5), of_many(of_weights), {"loss": of_weights}),
    "scores and a loss": (Words, lambda n: TensorDataset(words(n, T), words(n, T)), lambda m, b: m(*b)[1], {}),
    "a loss of two": (Alone, floats(5), lambda m, b: m(*b), {}),
    "rows alone": (
        lambda: Called(lambda m, x: F.mse_loss(m.out(x), x), out=nn.Linear(5, 5)),
        lambda n: TensorDataset(draw(n, 5)),
        lambda m, b: m(*b),
        {},
    ),
    "objects": (
        lambda: Called(lambda m, batch: m.out(batch.rows), out=nn.Linear(5, C)),
        lambda n: DataLoader([(x, k % C) for k, x in enumerate(draw(n, 5))], collate_fn=Batch),
        lambda m, b: F.cross_entropy(m(b), b.y),
        {},
    ),
    "hooked gradients": (hooked_layer, floats(5), cross_entropy, {}),
    "notes": (Notes, floats(5), cross_entropy, {}),
    "notes in place": (NotesInPlace, floats(5), cross_entropy, {}),
    "observers": (Observes, floats(5), cross_entropy, {}),
    "counts": (Counts, floats(5), cross_entropy, {}),
    "longest first": (
        Packed,
        lambda n: longest_first(ragged(n)),
        lambda m, b: F.cross_entropy(m(*b[:2]), b[2]),
        {},
    ),
    "longest first, two classes": (
        partial(Packed, 1),
        lambda n: longest_first(ragged(n, labels(n) % 2)),
        lambda m, b: F.binary_cross_entropy_with_logits(m(*b[:2]).squeeze(-1), b[2].float()),
        {},
    ),
    "a part": (Text, lambda n: Subset(tokens(2 * n), range(0, 2 * n, 2)), cross_entropy, {}),
    "a function": (with_function, floats(5), cross_entropy, {}),
    "a function of a frozen part": (lambda: refers_to_itself("frozen"), floats(5), cross_entropy, {}),
    "float64 by an own loss": (
        lambda: mlp().double(),
        floats(5),
        lambda m, b: F.cross_entropy(m(b[0].double()), b[1]),
        {"loss": lambda p, y: F.cross_entropy(p, y)},
    ),
    "bfloat16 by an own loss": (
        lambda: mlp().bfloat16(),
        floats(5),
        lambda m, b: F.cross_entropy(m(b[0].bfloat16()), b[1]),
        {"loss": lambda p, y: F.cross_entropy(p, y)},
    ),
    "a number beside scores": (Scaled, floats(5), lambda m, b: F.cross_entropy(m(b[0])[0], b[1]), {}),
    "another's modules": (
        lambda: Called(lambda m, x: m.out(x), out=nn.Linear(5, C), read=SimpleNamespace(_modules=["a"])),
        floats(5),
        cross_entropy,
        {},
    ),
    "one entry": (mlp, by_image, by_entry, {}),
    "one entry beside text": (
        mlp,
        lambda n: Listed(n, lambda i: by_image(n)[i] | {"file": f"{i}.png"}),
        by_entry,
        {},
    ),
    "one entry, numbers": (
        partial(mlp, 1),
        lambda n: sums_by_name(draw(n, 5)),
        lambda m, b: (m(b["x"]).squeeze(-1) - b["y"]).square().mean() / 2,
        {},
    ),
    "one entry and a loss": (
        mlp,
        by_image,
        by_entry,
        {"loss": lambda p, y: F.cross_entropy(p, y)},
    ),
    "a dictionary with one entry": (
        lambda: Called(lambda m, batch: m.out(batch["image"]), out=nn.Linear(5, C)),
        by_image,
        lambda m, b: F.cross_entropy(m({"image": b["image"]}), b["label"]),
        {},
    ),
    "a pair": (
        lambda: Called(lambda m, a, b: (m.out(a), m.out(b)), out=nn.Linear(5, C)),
        lambda n: TensorDataset(draw(n, 5), draw(n, 5, seed=1), labels(n) % 2 * 2.0 - 1),
        lambda m, b: F.cosine_embedding_loss(*m(*b[:2]), b[2]),
        {"loss": lambda output, y: F.cosine_embedding_loss(*output, y)},
    ),
    "assigns": (Assigns, floats(5), cross_entropy, {}),
    "a norm of one": (Normed, floats(5), cross_entropy, {}),
    "rounded": (lambda: rounded(draw(4, 5)), floats(5), cross_entropy, {}),
}


each_way = pytest.mark.parametrize(
    ("solver", "with_test"),
    [
        pytest.param(None, True, id="default, test rows"),
        pytest.param(None, False, id="default, no test rows", marks=pytest.mark.slow),
        pytest.param(ADAMW, True, id="AdamW, test rows", marks=pytest.mark.slow),
        pytest.param(ADAMW, False, id="AdamW, no test rows", marks=pytest.mark.slow),
    ],
)


def trained_by_a_loop(module, data, loss, optimizer=None):
    """Return the module after five passes, each a step on all rows; without an optimizer, as hmtl takes steps."""
    collate = data.collate_fn if isinstance(data, DataLoader) else default_collate
    rows = data.dataset if isinstance(data, DataLoader) else data
    parameters, clips = [w for w in module.parameters() if w.requires_grad], optimizer is None
    optimizer = torch.optim.SGD(parameters, lr=0.3) if optimizer is None else optimizer(parameters)
    for _ in range(5):
        optimizer.zero_grad()
        loss(module, collate([rows[i] for i in range(len(rows))])).backward()
        if clips:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return module


def seeded(make, rows):
    """Return a module, with lazy layers initialized by a row."""
    torch.manual_seed(0)
    module = make()
    if any(map(is_lazy, module.parameters())):
        module(default_collate([rows[0]])[0])
    return module


def compare(make, data, loss, options, solver, with_test):
    train = data(N)
    module, same = seeded(make, train), seeded(make, train)
    if solver is not None:
        options = options | {"solver": solver}
    want = trained_by_a_loop(same.train(), train, loss, solver.optimizer if solver else None)
    users = [(train, data(4)) if with_test else train]
    federation = hmtl.Federation(module, users, topology=symmetric(1, 1, 1), evaluate_every=1, **options)
    (got,) = federation.train(1)
    error = 2e-2 if next(got.parameters()).dtype == torch.bfloat16 else 1e-5
    before = dict(module.named_parameters())
    moved = False
    for name, w in want.state_dict().items():
        if w.is_floating_point():
            torch.testing.assert_close(got.state_dict()[name], w, rtol=error, atol=error)
        moved |= name in before and not torch.equal(before[name], w)
    assert moved
    assert ("test_error" in federation.history[0]) == with_test
    return federation, got


@each_way
@pytest.mark.parametrize("name", IDIOMS)
def test_it_trains_as_a_loop_does(name, solver, with_test):
    compare(*IDIOMS[name], solver, with_test)


def bert(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=T,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **{"num_labels": C, **options},
    )
    return transformers.BertForSequenceClassification(config)


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=C,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTForImageClassification(config)


def gpt():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=T, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    """A module that does not run without targets."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=WORDS,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def lora():
    peft = pytest.importorskip("peft")
    model = bert()
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.0)
    return peft.get_peft_model(model, config)


class Columns(Dataset):
    """Rows that are read together, as `datasets.Dataset.with_format("torch")` reads them."""

    def __init__(self, n):
        self.columns = {"input_ids": words(n, T), "attention_mask": torch.ones(n, T).long(), "labels": labels(n)}

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}

    def __getitems__(self, places):
        return [self[i] for i in places]


def regression(n):
    x, y = words(n, T), draw(n, seed=3)
    return Listed(n, lambda i: {"input_ids": x[i], "labels": y[i]})


def images(n):
    x = draw(n, 3, 8, 8)
    return Listed(n, lambda i: {"pixel_values": x[i], "labels": i % C})


def texts(n):
    x = words(n, T)
    return Listed(n, lambda i: {"input_ids": x[i], "labels": x[i]})


def own_of(model, batch):
    return model(**batch).loss


HUGGING_FACE = {
    "bert": (bert, dicts, own_of, {}),
    "bert, regression": (partial(bert, num_labels=1), regression, own_of, {}),
    "columns": (bert, Columns, own_of, {}),
    "vit": (vit, images, own_of, {}),
    "causal": (gpt, texts, own_of, {}),
    "from text to text": (t5, texts, own_of, {}),
    "lora": (lora, dicts, own_of, {}),
    "named loss": (
        bert,
        dicts,
        lambda m, b: F.cross_entropy(m(b["input_ids"], b["attention_mask"]).logits, b["labels"], label_smoothing=0.1),
        {"loss": partial(F.cross_entropy, label_smoothing=0.1)},
    ),
}


@each_way
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_hugging_face(name, solver, with_test):
    compare(*HUGGING_FACE[name], solver, with_test)


def test_buffers_of_integers_go_on_in_the_next_round():
    """Users who share a model share what it counted, rounded."""
    torch.manual_seed(0)
    first, data = Counts(), floats(5)(N)
    want = copy.deepcopy(first).train()
    for _ in range(2):
        trained_by_a_loop(want, data, cross_entropy)
    (got,) = hmtl.Federation(first, [data], topology=symmetric(1, 1, 1)).train(2)
    torch.testing.assert_close(got.state_dict(), want.state_dict(), rtol=1e-5, atol=1e-5)
    models = hmtl.Federation(first, [data] * 3 + [floats(5)(3 * N)] * 3).train(1)
    assert [int(model.calls) for model in models] == [12] * 6  # of 5 and 15 steps, by rows
    assert models[0].is_scaled.dtype == torch.bool


@pytest.mark.parametrize("kind", [Notes, NotesInPlace])
def test_users_do_not_read_the_notes_of_others(kind):
    """What a module assigns to its attributes is that of one user's training."""
    torch.manual_seed(0)
    module, kinds = kind(), [floats(5)(N), TensorDataset(draw(N, 5, seed=7), labels(N))]
    alone = [hmtl.Federation(module, [data], topology=symmetric(1, 1, 1)).train(1)[0] for data in kinds]
    models = hmtl.Federation(module, kinds * 3).train(1)
    want = sum(nn.utils.parameters_to_vector(model.parameters()) for model in alone) / 2
    torch.testing.assert_close(numbers_of(models[:1])[0], want.detach(), rtol=1e-4, atol=1e-5)


def test_users_modules_have_no_notes_of_trials():
    module = NotesInPlace()
    models = hmtl.Federation(module, [(floats(5)(N), floats(5)(4))] * 3).train(1)
    assert module.first is None
    assert all(each.first is None and not each.mean.any() for each in models)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_count_that_does_not_travel_may_be_coupled(persistent):
    def forward(m, x):
        m.n += m.training
        return m.out(x)

    module = Called(forward, out=nn.Linear(5, C))
    module.register_buffer("n", torch.tensor(0), persistent=persistent)
    if persistent:
        with pytest.raises(ConfigError, match=r"n .*persistent=False"):
            hmtl.Federation(module, [floats(5)(N)] * 5, algorithm="fedu")
    else:
        hmtl.Federation(module, [floats(5)(N)] * 5, algorithm="fedu").train(1)


def test_measuring_leaves_buffers_as_training_left_them():
    """Test rows are larger than those of training."""
    module, data = Observes(), floats(5)(N)
    (got,) = hmtl.Federation(
        module, [(data, TensorDataset(draw(4, 5) * 100, labels(4)))], topology=symmetric(1, 1, 1)
    ).train(2)
    assert module.largest == 0
    torch.testing.assert_close(got.largest, data.tensors[0].abs().max())


@pytest.mark.filterwarnings("error")
def test_compiled_modules_train_on_batches_of_any_size():
    torch.manual_seed(0)
    module = mlp()
    users = [(floats(5)(5), floats(5)(3)), floats(5)(9), floats(5)(2), (floats(5)(30), floats(5)(6))]
    want = hmtl.Federation(module, users).train(2)
    got = hmtl.Federation(torch.compile(module, backend="eager"), users).train(2)
    torch.testing.assert_close(numbers_of(got), numbers_of(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [4, 2**16])
def test_losses_of_batches_are_those_of_128_rows(width):
    """They may depend on the number of rows, but not on how large a module's results are."""
    module = Called(
        lambda m, x: m.out(m.same(m.wide(x).expand(-1, width))[:, :1]),
        wide=nn.Linear(5, 1),
        same=nn.Identity(),
        out=nn.Linear(1, C),
    )
    train, test = (TensorDataset(draw(n, 5, seed=n), draw(n, C, seed=n + 1)) for n in (N, 300))
    federation = hmtl.Federation(module, [(train, test)] * 5, loss=largest)
    models = federation.train(1)
    with torch.no_grad():
        batches = zip(*(each.split(128) for each in test.tensors), strict=True)
        parts = [largest(models[0](x), y) * len(x) for x, y in batches]
    assert federation.history[-1]["test_error"] == pytest.approx(float(sum(parts)) / 300, rel=1e-4)


def largest(p, y):
    return (p - y).square().mean(1).max()


@pytest.mark.parametrize("kind", [tuple, dict])
def test_loaded_models_predict_by_scores_among_outputs(kind, tmp_path):
    def forward(m, x):
        scores = m.out(x)
        return (scores, x) if kind is tuple else {"logits": scores}

    module = Called(forward, out=nn.Linear(5, C))
    models = hmtl.Federation(module, [floats(5)(N)] * 5, output_dir=tmp_path).train(1)
    loaded = hmtl.load_run(tmp_path, module)
    x = draw(4, 5, seed=1)
    assert list(loaded.predict(loaded.names[0], x)) == models[0].out(x).argmax(1).tolist()


def test_arrays_in_dictionaries_are_predicted(tmp_path):
    module, data = Called(lambda m, x: m.out(x["a"]), out=nn.Linear(5, C)), draw(N, 5)
    data = Listed(N, lambda i, x=data: {"a": x[i], "label": i % C})
    models = hmtl.Federation(module, [data] * 5, output_dir=tmp_path).train(1)
    loaded, x = hmtl.load_run(tmp_path, module), draw(4, 5, seed=1)
    want = models[0]({"a": x}).argmax(1).tolist()
    assert list(loaded.predict(loaded.names[0], {"a": x.numpy()})) == want


@pytest.mark.parametrize("with_test", [True, False])
def test_users_may_be_mappings_and_any_iterable(with_test):
    train, test = floats(5)(N), floats(5)(4)
    user = {"train": train, "test": test} if with_test else {"train": train}
    got = hmtl.Federation(mlp, (user for _ in range(3)), seed=1).train(1)
    want = hmtl.Federation(mlp, [(train, test) if with_test else train] * 3, seed=1).train(1)
    assert torch.equal(numbers_of(got), numbers_of(want))


def test_modules_may_write_into_their_rows():
    """Neither the user's tensors nor later rounds change."""
    module, data = Called(lambda m, x: m.out(x.sub_(0.1)), out=nn.Linear(5, C)), floats(5)(N)
    users = [(data, floats(5)(4))] * 3
    before = data.tensors[0].clone()
    want = hmtl.Federation(Called(lambda m, x: m.out(x - 0.1), out=copy.deepcopy(module.out)), users).train(2)
    got = hmtl.Federation(module, users).train(2)
    torch.testing.assert_close(numbers_of(got), numbers_of(want))
    assert torch.equal(data.tensors[0], before)


def test_transforms_draw_anew_and_figures_repeat():
    """A Dataset whose items are noise: training and measuring draw, by the seed alone."""

    def make():
        data = Listed(N, lambda i: (torch.randn(5), i % C))
        federation = hmtl.Federation(mlp, [(data, data)] * 5)
        return numbers_of(federation.train(2)), federation.history

    (first, rows), (second, again) = make(), make()
    assert torch.equal(first, second)
    assert [row["test_error"] for row in rows] == [row["test_error"] for row in again]


def drawn(shift=0, by=(0.0, 1.0, 2.0), kind=torch.int64):
    """Items whose row and target are drawn together, anew whenever they are read."""

    def item(i):
        c = int(torch.randint(len(by), ()))
        return F.one_hot(torch.tensor(c), len(by)) * 1.0, torch.tensor(by[c] + shift, dtype=kind)

    return item


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss()], ids=["default", "torch"])
def test_targets_are_read_with_their_rows(loss):
    """Targets drawn with their rows can be learned without an error, but not by the rows and targets of two draws."""
    data = Listed(N, drawn())
    options = {} if loss is None else {"loss": loss}
    federation = hmtl.Federation(nn.Linear(3, C), [(data, data)] * 3, evaluate_every=1, **options)
    federation.train(10)
    assert federation.history[-1]["test_error"] == 0
    assert federation.history[-1]["train_error"] == 0


def test_signs_and_numbers_are_read_with_their_rows():
    numbers = Listed(N, drawn(by=(-1.5, 0.5), kind=torch.float32))
    signs = Listed(N, drawn(by=(-1.0, 1.0)))
    values = Listed(N, drawn(by=(0.0, 1.0)))
    for data in (numbers, signs, values):
        federation = hmtl.Federation(nn.Linear(2, 1), [(data, data)] * 3)
        federation.train(20)
        assert federation.history[-1]["test_error"] < 0.01


def test_sorted_rows_are_measured_with_their_targets():
    """Each test row is wrong or right for its own target, also where a batch begins with its longest row."""
    rows = [(torch.full((1 + i % 7,), float(i)), i % C) for i in range(300)]

    def by_sum(items):
        x, y = zip(*sorted(items, key=lambda item: -len(item[0])), strict=True)
        return torch.stack([each[0] for each in x])[:, None], torch.tensor(y)

    layer = Called(lambda m, x: m.out(F.one_hot(x[:, 0].long() % C, C) * 1.0), out=nn.Linear(C, C))
    nn.init.eye_(layer.out.weight)
    data = DataLoader(rows, collate_fn=by_sum)
    federation = hmtl.Federation(layer, [(data, data)] * 3, measures={"wrong": lambda p, y: (p.argmax(1) != y).mean()})
    federation.train(1)
    assert federation.history[-1]["test_error"] == federation.history[-1]["train_error"] == 0


def test_weights_of_classes_need_targets_that_stay():
    data = Listed(N, lambda i: (draw(5), int(torch.randint(C, ()) * (i > 3))))
    federation = hmtl.Federation(mlp, [data] * 3, **{"dataset.class_weight": "balanced"})
    with pytest.raises(ConfigError, match="class_weight"):
        federation.train(1)


def test_layers_that_draw_from_numpy_and_python_repeat():
    def make():
        torch.manual_seed(0)
        layer = Called(lambda m, x: m.out(x) * (np.random.rand() + random.random()), out=nn.Linear(5, C))  # noqa: NPY002
        return numbers_of(hmtl.Federation(layer, [floats(5)(N)] * 3).train(1))

    assert torch.equal(make(), make())


def numbers_of(models):
    return torch.stack([nn.utils.parameters_to_vector(model.parameters()).detach() for model in models])


class FrozenBody(nn.Module):
    """Frozen convolutions with BatchNorm and dropout, and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))
        self.body.requires_grad_(False)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def test_frozen_layers_stay_in_evaluation_mode():
    """Neither their BatchNorm nor their dropout changes; `frozen="train"` is the other way."""
    torch.manual_seed(0)
    first, data = FrozenBody(), floats(2, 8, 8)(N)
    want = copy.deepcopy(first)
    trained_by_a_loop(want.eval(), data, cross_entropy)
    federation = hmtl.Federation(first, [data], topology=symmetric(1, 1, 1))
    (got,) = federation.train(1)
    torch.testing.assert_close(got.state_dict(), want.state_dict(), rtol=1e-5, atol=1e-5)
    assert federation.algorithm.users.row_layout.numbers == 4 * C + C
    assert "15 numbers; 84 are frozen in evaluation mode" in str(federation)
    other = hmtl.Federation(first, [data], topology=symmetric(1, 1, 1), frozen="train")
    assert other.algorithm.users.row_layout.numbers == 4 * C + C + 8
    assert not torch.equal(other.train(1)[0].head.weight, got.head.weight)


def trunk(seed=0):
    """A frozen layer, a large constant, and a head."""
    torch.manual_seed(seed)
    module = Called(
        lambda m, x: m.head(m.body(x) + m.shift[:8]), body=nn.Linear(5, 8).requires_grad_(False), head=nn.Linear(8, C)
    )
    module.register_buffer("shift", torch.randn(2000))
    return module


class Writes(LocalTrainer):
    def train(self, model, data, round, generator):
        with torch.no_grad():
            model.body.weight.mul_(0.9)
        return model


def users_of(kind, count=5):
    return [(kind(N), kind(4))] * count


@pytest.mark.parametrize("algorithm", ["fedavg", "fedper", "ditto"])
def test_a_trunk_exists_once(algorithm, tmp_path):
    """In the module that was given and in all users' modules; `models.npz` has the head alone."""
    first = trunk()
    before = copy.deepcopy(first.state_dict())
    options = {} if algorithm != "fedper" else {"algorithm.personal": ["head.bias"]}
    federation = hmtl.Federation(first, users_of(floats(5)), algorithm=algorithm, output_dir=tmp_path, **options)
    models = federation.train(2)
    assert {id(model.body.weight) for model in [first, *models]} == {id(first.body.weight)}
    assert len({model.shift.data_ptr() for model in models}) == 1
    assert len({model.head.weight.data_ptr() for model in models}) == 5
    for name in ("body.weight", "shift"):
        assert torch.equal(first.state_dict()[name], before[name])
    with pytest.raises(ConfigError, match="model=module") as error:
        hmtl.load_run(tmp_path)
    assert "full_key" not in str(error.value)
    loaded = hmtl.load_run(tmp_path, model=first)
    assert len(repr(loaded)) < 120
    x = draw(4, 5, seed=9)
    scores = torch.from_numpy(loaded.scores("user 2", x.numpy()))
    torch.testing.assert_close(scores, models[2](x).detach(), rtol=1e-5, atol=1e-5)


def test_another_trunk_is_refused(tmp_path):
    hmtl.Federation(trunk(), users_of(floats(5)), output_dir=tmp_path).train(1)
    with pytest.raises(ConfigError, match="frozen"):
        hmtl.load_run(tmp_path, lambda d, C: trunk(1)).model("user 2")
    with pytest.raises(CheckpointError, match="frozen"):
        hmtl.Federation(trunk(1), users_of(floats(5)), resume=tmp_path).train(1)
    assert len(hmtl.Federation(trunk(), users_of(floats(5)), resume=tmp_path).train(1)) == 5


def test_code_that_writes_into_a_trunk_is_refused():
    with pytest.raises(ConfigError, match=r"body\.weight"):
        hmtl.Federation(trunk(), users_of(floats(5)), solver=Writes()).train(1)


def test_adapters_are_saved_and_loaded_by_peft(tmp_path):
    """What a user's module gives after `save_pretrained`, an ordinary one gives with the same trunk."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = bert()
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.0)
    federation = hmtl.Federation(peft.get_peft_model(copy.deepcopy(base), config), users_of(dicts))
    models = federation.train(1)
    assert max(map(len, repr(federation).splitlines())) < 120
    assert federation.algorithm.users.row_layout.numbers < 200
    models[1].save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    x = words(4, T)
    torch.testing.assert_close(loaded(x).logits, models[1](x).logits)
    assert len({id(model.get_base_model().bert.embeddings.word_embeddings.weight) for model in models}) == 1


ONCE = {"topology": any_r(K=11, H=4, r=3), "solver": LocalSGD(epochs=1), "evaluate": ["test"]}
SECURE = ONCE | {"communicator": "sums", "secure": True}


def related(count):
    """Users with unlike numbers of unlike rows."""
    rows = list(dicts(40))
    return [(rows[k : k + 6 + k % 3], rows[k : k + 1]) for k in range(count)]


def adapters(models):
    trained = [[w for w in model.parameters() if w.requires_grad] for model in models]
    return torch.stack([nn.utils.parameters_to_vector(each).detach() for each in trained])


@pytest.mark.parametrize(("algorithm", "m"), [("fedavg", 91), (FedPer("*lora_B*"), 59), ("ditto", 91)])
def test_secure_sums_of_adapters(algorithm, m):
    """Models have the bits of sums without masks, and a term 64 bits for each shared number of an adapter."""
    torch.manual_seed(0)
    model = lora()
    secure, plain = (
        hmtl.Federation(model, related(11), algorithm=algorithm, **{**SECURE, "secure": each}) for each in (True, False)
    )
    before = adapters([model])
    models = secure.train(2)
    assert torch.equal(adapters(models), adapters(plain.train(2)))
    assert not torch.equal(adapters(models[:1]), before)
    words = [each.get_base_model().bert.embeddings.word_embeddings.weight for each in [model, *models]]
    assert len({each.data_ptr() for each in words}) == 1
    table = secure.ledger.table()
    terms = table[(table.tier == "users_to_relays") & (table.payload_bits > 0)]
    assert terms.payload_bits.tolist() == [2 * 64 * m] * 11
    assert set(table[table.payload_bits > 0].kind) == {"IVs", "models"}


def test_private_sums_of_adapters():
    """The mean of users' changes, of which half are clipped; ε of two Gaussian mechanisms on all users."""
    torch.manual_seed(0)
    model = lora()
    alone = hmtl.Federation(model, related(11), algorithm="local_networks", **ONCE)
    changes = adapters(alone.train(1)) - adapters([model])
    norms = changes.norm(dim=1, keepdim=True)
    clip = float(norms.median())
    mean = (changes * (clip / norms).clamp(max=1)).mean(0)
    for noise in (1e-6, 3.0):
        privacy = {"clip": clip, "noise": noise, "delta": 1e-3}
        federation = hmtl.Federation(model, related(11), privacy=privacy, **SECURE)
        change = adapters(federation.train(1)) - adapters([model])
        far = (change - mean).norm(dim=1) / clip
        assert (far < 1e-4).all() if noise < 1 else (far > 0.5).all()
    federation.train(1)
    orders = np.array([*range(2, 65), 80, 96, 128, 256, 512])
    divergences = 2 * orders / (2 * noise**2)
    epsilon = (divergences + np.log1p(-1 / orders) - np.log(1e-3 * orders) / (orders - 1)).min()
    assert federation.summary.epsilon == pytest.approx(epsilon)


def test_a_personal_adapter_beside_a_shared_one(tmp_path):
    """Both are saved with the module, and peft loads both."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base, config = gpt(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.add_adapter("own", config)
    model.base_model.set_adapter(["default", "own"])
    users = [(Subset(texts(5 * N), range(k, 5 * N, 5)), texts(4)) for k in range(5)]
    models = hmtl.Federation(model, users, algorithm=FedPer("*.own")).train(2)
    first, second = (dict(each.named_parameters()) for each in models[:2])
    assert any(".own." in name for name in first)
    for name, w in first.items():
        assert torch.equal(w, second[name]) == (".lora_" not in name or ".default." in name)
    models[1].save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    loaded.load_adapter(tmp_path / "own", "own")
    loaded.base_model.set_adapter(["default", "own"])
    x = words(4, T)
    torch.testing.assert_close(loaded.eval()(x).logits, models[1](x).logits)


def hooked(module):
    module[0].weight.register_hook(lambda gradient: gradient / 2)
    return module


class Stream(IterableDataset):
    def __iter__(self):
        yield from tokens(N)


def late(word=0, label=0, first=4):
    """Words and labels of which only those of the first items are in range."""

    def item(i):
        is_out = i >= first
        return {"input_ids": words(T) + word * is_out, "attention_mask": torch.ones(T), "labels": label * is_out}

    return Listed(N, item)


REFUSED = {
    "a stream": (Text, Stream(), DataError, "numbers"),
    "no targets": (mlp, TensorDataset(draw(N, 5)), DataError, "targets"),
    "no labels": (Attended, Listed(N, lambda i: {"input_ids": words(T)}), DataError, "labels"),
    "no loss for labels of several": (
        partial(mlp, 4),
        TensorDataset(draw(N, 5), torch.ones(N, 4, dtype=torch.int64)),
        DataError,
        "loss=",
    ),
    "no labels for a named loss": (Coder, Listed(N, lambda i: {"x": draw(N, 6)[i]}), DataError, "loss", nn.MSELoss()),
    "a table": (mlp, (pd.DataFrame({"a": [0.0, 1.0]}), pd.Series([0, 1])), DataError, "TensorDataset"),
    "other rows": (partial(mlp), TensorDataset(draw(N, 7), labels(N)), ConfigError, "7"),
    "other rows of a layer": (lambda: nn.Linear(5, C), TensorDataset(draw(N, 7), labels(N)), ConfigError, "mat1"),
    "too few scores": (partial(mlp, 2), floats(5)(N), ConfigError, "2"),
    "complex": (
        lambda: Called(lambda m, x: (x + 0j) @ m.w, w=nn.Parameter(torch.zeros(5, C) + 1j)),
        floats(5)(N),
        ConfigError,
        "view_as_complex",
    ),
    "hooked": (lambda: hooked(mlp()), floats(5)(N), ConfigError, "0.weight"),
    "ignored rows": (mlp, TensorDataset(draw(N, 5), labels(N) - 100), DataError, "-100"),
    "not a number": (partial(mlp, 1), TensorDataset(draw(N, 5), draw(N) * torch.nan), DataError, "y_train"),
    "names of classes": (mlp, Listed(N, lambda i: (draw(N, 5)[i], "abc"[i % C])), DataError, "strings"),
    "a sampler": (
        mlp,
        DataLoader(floats(5)(N), sampler=SubsetRandomSampler(range(4))),
        DataError,
        "Subset",
    ),
    "a sampler in batches": (
        mlp,
        DataLoader(floats(5)(N), batch_sampler=BatchSampler(SubsetRandomSampler(range(4)), 2, False)),
        DataError,
        "Subset",
    ),
    "a sampler with replacement": (
        mlp,
        DataLoader(floats(5)(N), sampler=RandomSampler(range(N), replacement=True)),
        DataError,
        "Subset",
    ),
    "a sampler of few": (
        mlp,
        DataLoader(floats(5)(N), sampler=RandomSampler(range(N), num_samples=3)),
        DataError,
        "Subset",
    ),
    "a sampler of batches": (mlp, DataLoader(floats(5)(N), batch_sampler=[[0, 1], [2]]), DataError, "Dataset"),
    "batches": (mlp, DataLoader([(draw(4, 5), labels(4))] * 3, batch_size=None), DataError, "batch_size"),
    "a buffer without its shape": (Resizes, floats(5)(N), ConfigError, "scale"),
    "an observer of no rows": (rounded, floats(5)(N), ConfigError, "_val .* in training mode"),
    "a lambda": (lambda: refers_to_itself("lambda"), floats(5)(N), ConfigError, "function"),
    "a default": (lambda: refers_to_itself("default"), floats(5)(N), ConfigError, "function"),
    "a global": (lambda: refers_to_itself("global"), floats(5)(N), ConfigError, "function"),
    "a partial function": (lambda: refers_to_itself("partial"), floats(5)(N), ConfigError, "function"),
    "a hook": (lambda: refers_to_itself("hook"), floats(5)(N), ConfigError, "_forward_hooks"),
    "another forward": (lambda: refers_to_itself("forward"), floats(5)(N), ConfigError, "forward"),
    "a lock": (
        lambda: Called(lambda m, x: m.out(x), out=nn.Linear(5, C), lock=Lock()),
        floats(5)(N),
        ConfigError,
        "copied",
    ),
    "three inputs": (
        lambda: Called(lambda m, a, b, c: m.out(a + b + c), out=nn.Linear(5, C)),
        TensorDataset(draw(N, 5), draw(N, 5), draw(N, 5)),
        ConfigError,
        "target",
    ),
    "several entries": (
        mlp,
        Listed(N, lambda i: {"image": draw(5), "mask": draw(5), "label": i % C}),
        ConfigError,
        "parameters of forward.*collate_fn",
    ),
    "a list as an argument": (
        lambda: Called(lambda m, images: m.out(torch.stack(images)), out=nn.Linear(5, C)),
        DataLoader(
            Listed(N, lambda i: (draw(N, 5)[i], {"class": i % C})),
            collate_fn=lambda rows: tuple(zip(*rows, strict=True)),
        ),
        ConfigError,
        "one argument into a dictionary",
    ),
    "lists of numbers": (
        mlp,
        Listed(N, lambda i: {"image": [0.5] * 300, "label": i % C}),
        ConfigError,
        "with_format",
    ),
    "targets of uneven length": (
        mlp,
        DataLoader([(draw(5), torch.ones(1 + i % 3).long()) for i in range(N)], collate_fn=joined),
        DataError,
        "loss=lambda output, y",
    ),
    "class maps": (
        lambda: nn.Conv2d(2, C, 1),
        TensorDataset(draw(N, 2, 4, 4), words(N, 4, 4, high=C)),
        DataError,
        "CrossEntropyLoss",
    ),
    "dictionaries of targets": (mlp, Listed(N, lambda i: (draw(5), {"a": i, "b": i})), DataError, "lambda output, y"),
    "an assertion": (lambda: Called(asserts, out=nn.Linear(5, C)), floats(5)(N), ConfigError, "AssertionError"),
    "no such file": (
        lambda: Called(lambda m, x: Path("nowhere").read_text(), out=nn.Linear(5, C)),
        floats(5)(N),
        ConfigError,
        "nowhere",
    ),
    "items that divide by zero": (mlp, Listed(N, lambda i: (draw(5), 1 // (i - 7))), DataError, "ZeroDivision"),
    "other outputs in evaluation": (
        lambda: Called(lambda m, x: (m.out(x), m.out(x)) if m.training else m.out(x), out=nn.Linear(5, C)),
        floats(5)(N),
        ConfigError,
        "evaluation mode",
        lambda output, y: F.cross_entropy(output[0], y) + F.cross_entropy(output[1], y),
    ),
    "a loss of a pair": (
        lambda: Called(lambda m, a, b: (m.out(a), m.out(b)), out=nn.Linear(5, C)),
        TensorDataset(draw(N, 5), draw(N, 5), labels(N) % 2 * 2.0 - 1),
        DataError,
        "lambda output, y",
        nn.CosineEmbeddingLoss(),
    ),
    "a loss of three": (
        lambda: Called(lambda m, x: m.out(x).unbind(1), out=nn.Linear(5, 2)),
        TensorDataset(draw(N, 5), draw(N)),
        ConfigError,
        "lambda output, y",
        nn.GaussianNLLLoss(),
    ),
    "a late row that is not a number": (
        mlp,
        Listed(300, lambda i: (draw(5) * (torch.nan if i == 290 else 1), draw(C))),
        DataError,
        "training rows of user 0: Row 290",
    ),
    "a late target that is not a number": (
        mlp,
        TensorDataset(draw(300, 5), torch.where(torch.arange(300)[:, None] == 290, torch.nan, draw(300, C))),
        DataError,
        "training rows of user 0: Row 290",
    ),
    "test rows without targets": (mlp, (floats(5)(N), TensorDataset(draw(N, 5))), DataError, "user 0.*targets"),
    "other names of data": (mlp, {"train": floats(5)(N), "validation": floats(5)(N)}, DataError, "validation"),
    "in parallel": (lambda: nn.DataParallel(mlp()), floats(5)(N), ConfigError, "module"),
    "a teacher in place": (partial(Follows, True), floats(5)(N), ConfigError, "teacher.weight.* buffer"),
    "a teacher": (Follows, floats(5)(N), ConfigError, "teacher.weight.* buffer"),
    "a script inside": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(5, 4)), nn.Linear(4, C)),
        floats(5)(N),
        ConfigError,
        "script",
    ),
    "a script": (lambda: torch.jit.script(mlp()), floats(5)(N), ConfigError, "script"),
    "nothing to train": (lambda: mlp().requires_grad_(False), floats(5)(N), ConfigError, "train"),
    "a label too large": (partial(Attended, own=True), late(label=C), DataError, "user 0 .*num_labels"),
    "a label too small": (partial(Attended, own=True), late(label=-1), DataError, "user 0 "),
    "a word too large": (partial(Attended, own=True), late(word=WORDS), DataError, "user 0 "),
    "all words too large": (partial(Attended, own=True), late(word=WORDS, first=0), ConfigError, "embeddings"),
    "a label too large for a loss of torch": (Attended, late(label=C), DataError, "user 0 ", nn.CrossEntropyLoss()),
    "text": (Attended, Listed(N, lambda i: {"input_ids": "a", "labels": i % C}), ConfigError, "input_ids"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name):
    make, data, kind, named, *loss = REFUSED[name]
    with pytest.raises(kind, match=named) as error:
        hmtl.Federation(make(), [data] * 5, **({"loss": loss[0]} if loss else {})).train(1)
    assert "\n" not in str(error.value)


class Temperature(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.ones(()))

    def forward(self, predictions, y):
        return F.cross_entropy(predictions * self.t, y)


def penalty(model):
    return lambda p, y: F.cross_entropy(p, y) + sum(w.square().sum() for w in model.parameters())


OTHERS_PARAMETERS = {
    "a penalty": lambda model: {"loss": penalty(model)},
    "a penalty in a partial function": lambda model: {"loss": partial(penalty(model))},
    "a penalty of the solver": lambda model: {
        "solver": TorchTrainer(partial(torch.optim.SGD, lr=0.1), loss=penalty(model))
    },
    "a loss that learns": lambda model: {"loss": Temperature()},
    "a loss that learns within a function": lambda model: {"loss": partial(lambda own, p, y: own(p, y), Temperature())},
    "an optimizer of the model": lambda model: {"solver": lambda _: torch.optim.SGD(model.parameters(), lr=0.1)},
    "one optimizer for all": lambda model: {
        "solver": partial(lambda made, _: made, torch.optim.SGD(model.parameters(), lr=0.1))
    },
    "an optimizer": lambda model: {"solver": torch.optim.SGD(model.parameters(), lr=0.1)},
}


@pytest.mark.parametrize("name", OTHERS_PARAMETERS)
def test_parameters_that_no_user_trains_are_refused(name):
    """Users train copies: neither the module that was given nor a loss learns."""
    model = mlp()
    with pytest.raises(ConfigError, match=r"copy of the model|one user|its own"):
        hmtl.Federation(model, [floats(5)(N)] * 3, **OTHERS_PARAMETERS[name](model)).train(1)


def test_losses_may_use_another_network():
    """A teacher whose outputs are detached, or that is frozen."""
    teacher = mlp()

    def distilled(p, y):
        with torch.no_grad():
            wanted = teacher(p @ torch.ones(C, 5))
        return F.cross_entropy(p, y) + (p - wanted).square().mean()

    hmtl.Federation(mlp, [floats(5)(N)] * 3, loss=distilled).train(1)
    frozen = Temperature().requires_grad_(False)
    hmtl.Federation(mlp, [floats(5)(N)] * 3, loss=frozen).train(1)


GROUPS = {
    "by dimension": lambda ws: [
        {"params": [w for w in ws if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in ws if w.ndim < 2], "lr": 0.02},
    ],
    "each its own": lambda ws: [{"params": [w], "lr": 0.3 * 0.5**i} for i, w in enumerate(ws)],
    "one": list,
}


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_of_parameters_follow_a_scheduler(groups):
    def optimizer(parameters):
        return torch.optim.SGD(GROUPS[groups](list(parameters)), lr=0.3, momentum=0.5)

    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    module, data = mlp(), floats(5)(N)
    want = copy.deepcopy(module)
    solver = TorchTrainer(optimizer, scheduler=scheduler, epochs=2, batch=N)
    (got,) = hmtl.Federation(module, [data], topology=symmetric(1, 1, 1), solver=solver).train(3)
    for round in range(3):
        own = optimizer(want.parameters())
        for group in own.param_groups:
            group["lr"] *= 0.1**round
        for _ in range(2):
            own.zero_grad()
            cross_entropy(want, data.tensors).backward()
            own.step()
    torch.testing.assert_close(numbers_of([got]), numbers_of([want]))


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"lr": 0.1}, r'"solver\.step": \.\.\.'),
        ({"batch_size": 8}, r'"solver\.batch": \.\.\.'),
        ({"epochs": 2}, r'"solver\.epochs": \.\.\.'),
        ({"optimizer": torch.optim.SGD}, "mean solver.* solver=functools.partial"),
        ({"momentum": 0.9}, "mean solver.* solver=functools.partial"),
        ({"solver.lr": 0.9}, "mean solver.step"),
        ({"solver": "adam"}, "solver=functools.partial"),
        ({"solver": "torch.optim.Adam"}, "solver=functools.partial"),
        ({"clip": 1.0}, r"TorchTrainer\(optimizer, clip=\.\.\.\)"),
        ({"num_epochs": 2}, r'"solver\.epochs": \.\.\.}\?$'),
        ({"criterion": nn.CrossEntropyLoss()}, "mean loss"),
        ({"random_state": 3}, "mean seed"),
        ({"num_rounds": 2}, "mean rounds"),
        ({"lr": 0.1, "solver": torch.optim.SGD}, "of the solver.* solver=functools.partial"),
        ({"solver": torch.optim.LBFGS}, "LBFGS.*LocalTrainer"),
        (
            {"solver": TorchTrainer(torch.optim.SGD, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)},
            "ReduceLROnPlateau.*CosineAnnealingLR",
        ),
    ],
)
def test_settings_of_other_libraries_are_named_here(options, meant):
    with pytest.raises(ConfigError, match=meant):
        hmtl.Federation(mlp, [floats(5)(N)] * 3, **options)


ADVISED = {
    "class maps": (lambda: nn.Conv2d(2, C, 1), (2, 4, 4), (4, 4), C, ["CrossEntropyLoss"]),
    "maps of two classes": (lambda: nn.Conv2d(2, 1, 1), (2, 4, 4), (4, 4), 2, ["binary_cross_entropy_with_logits"]),
    "maps of one channel": (lambda: nn.Conv2d(2, 1, 1), (2, 4, 4), (1, 4, 4), 2, ["BCEWithLogitsLoss"]),
    "volumes": (lambda: nn.Conv3d(2, C, 1), (2, 3, 4, 5), (3, 4, 5), C, ["CrossEntropyLoss"]),
    "words": (lambda: nn.Linear(5, C), (T, 5), (T,), C, ["cross_entropy"]),
    "as many words as classes": (lambda: nn.Linear(5, C), (C, 5), (C,), C, ["CrossEntropyLoss", "cross_entropy"]),
    "labels": (lambda: nn.Linear(5, 4), (5,), (4,), 2, ["BCEWithLogitsLoss"]),
    "counts": (lambda: nn.Linear(5, 4), (5,), (4,), 9, ["MSELoss"]),
}


@pytest.mark.parametrize("named", [{}, {"loss": "cross_entropy"}])
@pytest.mark.parametrize("name", ADVISED)
def test_losses_that_are_advised_train(name, named):
    """A loss is named for targets of several numbers, such as classes of pixels; each is one that trains."""
    make, shape, targets, high, functions = ADVISED[name]
    data = [TensorDataset(draw(N, *shape), words(N, *targets, high=high + 1) - 1)] * 5
    with pytest.raises(DataError, match=r"loss=") as error:
        hmtl.Federation(make(), data, **named)
    advised = str(error.value).removesuffix(".").split("loss=")[1:]
    assert [each.split("(")[0].split(".")[-1] for each in advised] == functions
    for each in advised:
        loss = eval(each.partition(" or, ")[0], {"torch": torch})
        before = make()
        (first, *_) = hmtl.Federation(before, data, loss=loss).train(1)
        assert not torch.equal(first.weight, before.weight)


@pytest.mark.parametrize("kind", ["half", "sparse"])
def test_terms_on_models_join_gradients_of_each_kind(kind):
    """Ditto draws a user's model to another, by a term in numbers of the module, beside sparse gradients, too."""
    module = Text() if kind == "sparse" else mlp().half()
    if kind == "sparse":
        module.embedding.sparse = True
    data = tokens(N) if kind == "sparse" else TensorDataset(draw(N, 5).half(), labels(N))
    models = hmtl.Federation(module, [data] * 3, algorithm="ditto").train(2)
    assert all(w.isfinite().all() for w in models[0].state_dict().values())
    assert not torch.equal(models[0].state_dict()[name := next(iter(module.state_dict()))], module.state_dict()[name])


@pytest.mark.parametrize("algorithm", ["fedper", "scaffold", "fedu", "pfedme"])
def test_learners_train_on_dictionaries(algorithm):
    """FedU couples users by the shares of their classes, as rows are not vectors."""
    module = Attended()
    models = hmtl.Federation(module, [(dicts(N), dicts(4))] * 5, algorithm=algorithm).train(1)
    assert not torch.equal(models[0].out.weight, module.out.weight)


@pytest.mark.parametrize("name", ["dictionaries", "embedding", "packed", "uint8", "multi-label"])
def test_processes_without_rows_build_the_same_network(name):
    """Datasets stay where they are: what travels is types and shapes."""
    make, data, _, options = IDIOMS[name]
    tasks = from_datasets([(data(N), data(4))] * 3, networks=True)
    sent = from_bytes(to_bytes({"tasks": tuple(task.without_rows() for task in tasks)}))["tasks"]
    assert all(task.items is None and not task.is_local for task in sent)
    loss = TorchLoss(options["loss"]) if options else CrossEntropy()
    parts = [
        NetworkAlgorithm(FedAvg(), Problem(each, loss, Ridge(0.1)), TorchTrainer(torch.optim.SGD), lambda d, C: make())
        for each in (tasks, (*sent[:2], tasks[2]), sent)
    ]
    assert len({part.model.outline for part in parts}) == 1
    assert all(torch.equal(part.model.start, parts[0].model.start) for part in parts)


def test_own_measures_need_one_target_for_each_row():
    data, measures = [floats(5, y=numbers)(N)] * 5, {"bias": lambda p, y: float((p - y).mean())}
    federation = hmtl.Federation(mlp(1), data, loss=nn.L1Loss(), measures=measures)
    (first, *_) = federation.train(1)
    x, y = data[0].tensors
    assert federation.history[0]["train_bias"] == pytest.approx(float((first(x)[:, 0] - y).mean()), abs=1e-6)
    with pytest.raises(ConfigError, match="measures"):
        hmtl.Federation(mlp(4), [TensorDataset(x, draw(N, 4))] * 5, measures=measures)


@pytest.mark.parametrize("name", ["embedding", "dictionaries", "uint8", "arrays", "packed"])
@pytest.mark.slow
def test_many_users_are_saved_and_loaded(name, tmp_path):
    """Five users, coded; `load_run` needs the module alone, and gives the same scores."""
    make, data, _, options = IDIOMS[name]
    federation = hmtl.Federation(make(), [(data(N), data(4))] * 5, output_dir=tmp_path, algorithm="ditto", **options)
    models = federation.train(2)
    for given in (make, make(), lambda d, C: make()):
        loaded = hmtl.load_run(tmp_path, given).model("user 3")
        for got, want in zip(loaded.parameters(), models[3].parameters(), strict=True):
            assert torch.equal(got, want)
    assert federation.summary.rounds == 2


@pytest.mark.parametrize("name", ["embedding", "uint8", "gru"])
def test_many_users_train_side_by_side(name):
    """They learn what they learn one after the other, from integers, too."""
    make, data, _, options = IDIOMS[name]
    torch.manual_seed(0)
    module, alone = make(), TorchTrainer(lambda parameters: torch.optim.SGD(parameters, lr=0.3), clip=1.0)
    federations = [hmtl.Federation(module, [data(N)] * 5, **how, **options) for how in ({}, {"solver": alone})]
    models = [numbers_of(federation.train(1)) for federation in federations]
    torch.testing.assert_close(*models, rtol=1e-5, atol=1e-5)
    assert [federation.algorithm.model.side_by_side for federation in federations] == [True, False]


class Merges(nn.Linear):
    """A frozen layer with an adapter, which it adds to its weight in evaluation mode and subtracts in training mode."""

    def __init__(self, start=0.0):
        super().__init__(5, C)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.full((C, 2), start))
        self.is_merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.is_merged == mode:
            self.weight.data += (self.up @ self.down).detach() * (-1 if mode else 1)
            self.is_merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.is_merged else x @ self.down.T @ self.up.T)


class Fuses(nn.Linear):
    """A layer that makes the weight with which it computes in evaluation mode when it is switched to this mode."""

    def train(self, mode=True):
        super().train(mode)
        self.fused = None if mode else 2 * self.weight.detach()
        return self

    def forward(self, x):
        return F.linear(x, 2 * self.weight if self.fused is None else self.fused, self.bias)


@pytest.mark.parametrize("frozen", ["eval", "train"])
@pytest.mark.parametrize("data", [floats(5), lambda n: Listed(n, lambda i: (draw(5, seed=i), i % C))])
@pytest.mark.parametrize(
    "make", [Merges, partial(Merges, 0.5), lambda: Merges(0.5).eval(), lambda: Merges(0.5).eval().train(), Fuses]
)
def test_weights_that_are_set_by_the_mode_are_refused(make, data, frozen):
    """Users share frozen weights, and rows are measured with each user's numbers in one module."""
    torch.manual_seed(0)
    module = make() if make is not Fuses else Fuses(5, C)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ConfigError, match=rf"{type(module).__name__}\.train.*merge_weights"):
        hmtl.Federation(module, [data(N)] * 3, frozen=frozen)
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())


def test_a_module_may_keep_a_part_in_evaluation_mode_itself():
    class Half(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    module = Half(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, C))
    models = hmtl.Federation(module, [floats(5)(N)] * 3).train(1)
    assert all(torch.equal(model[1].running_mean, module[1].running_mean) for model in models)


@pytest.mark.parametrize("persistent", [True, False, None])
@pytest.mark.parametrize("is_stored", [True, False])
def test_measures_of_a_user_do_not_depend_on_others(is_stored, persistent):
    """A module that notes the first rows that it measures, or counts them, is as it was before the next user."""

    def forward(module, x):
        if not module.training:
            module.n += len(x)
            module.first = x.mean(0) if module.first is None else module.first
            x = x - module.first
        return module.out(x) + module.n

    module = Called(forward, out=nn.Linear(5, C), first=None, n=torch.zeros(C))
    if persistent is not None:
        del module.n
        module.register_buffer("n", torch.zeros(C), persistent)
    data = [TensorDataset(draw(N, 5, seed=user) + user, labels(N)) for user in range(3)]
    if not is_stored:
        data = [Listed(N, partial(lambda own, i: own[i], each)) for each in data]
    measured = []
    for users in ([0], [1], [2], [0, 1, 2]):
        federation = hmtl.Federation(
            module,
            [(data[user],) * 2 for user in users],
            algorithm="local_networks",
            topology=symmetric(len(users), 1, 1),
            measures={"mean": lambda p, y: p.mean()},
            evaluate_every=1,
            **{"solver.step": 1e-9},
        )
        federation.train(2)
        measured.append(federation.history[-1]["test_mean"])
    assert measured[3] == pytest.approx(sum(measured[:3]) / 3, abs=1e-5)


def test_a_step_size_that_is_a_tensor_stays_as_it_is():
    """A scheduler writes into it, in each round anew."""
    model, rate = mlp(), torch.tensor(0.3)
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    models = [
        hmtl.Federation(
            model,
            [floats(5)(N)],
            topology=symmetric(1, 1, 1),
            solver=TorchTrainer(partial(kind, lr=lr), scheduler=scheduler),
        ).train(3)
        for kind, lr in [(torch.optim.Adam, 0.3), (torch.optim.Adam, rate)]
    ]
    assert rate == pytest.approx(0.3)
    torch.testing.assert_close(numbers_of(models[1]), numbers_of(models[0]), rtol=1e-5, atol=1e-6)


OPTIMIZERS = {
    "by number": lambda ws: torch.optim.SGD([{"params": ws[:-2], "lr": 0.01}, {"params": ws[-2:]}], lr=0.1),
    "by shape": lambda ws: torch.optim.SGD([{"params": [w for w in ws if w.ndim == n]} for n in (1, 2)], lr=0.1),
    "by name": lambda ws: (lambda weight, bias, *others: torch.optim.AdamW([weight, bias, *others]))(*ws),
    "the last alone": lambda ws: torch.optim.SGD([ws[3]], lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_tried_with_the_networks_own_parameters(name):
    model, data = mlp(), floats(5)(N)
    want = copy.deepcopy(model)
    solver = TorchTrainer(OPTIMIZERS[name], epochs=1, batch=N)
    (got,) = hmtl.Federation(model, [data], topology=symmetric(1, 1, 1), solver=solver).train(1)
    optimizer = OPTIMIZERS[name](list(want.parameters()))
    cross_entropy(want, data.tensors).backward()
    optimizer.step()
    torch.testing.assert_close(numbers_of([got]), numbers_of([want]))


@pytest.mark.parametrize(
    ("optimizer", "algorithm", "words"),
    [
        (lambda ws: None, "fedavg", "NoneType.*Return an optimizer"),
        (
            lambda ws: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(ws, lr=0.1), 1),
            "fedavg",
            "StepLR.*Return an optimizer",
        ),
        (lambda ws: torch.optim.SGD(ws[9], lr=0.1), "fedavg", "IndexError"),
        (lambda ws: torch.optim.SGD([{"params": [w], "lr": 1 / (i + 1)} for i, w in enumerate(ws)]), "fedu", "several"),
        (OPTIMIZERS["by number"], "scaffold", "several step sizes"),
        (OPTIMIZERS["by number"], "fednova", "several step sizes"),
        (
            lambda ws: torch.optim.SGD([{"params": ws[:2]}, {"params": ws[2:], "momentum": 0.9}], lr=0.1),
            "scaffold",
            "plain gradient steps",
        ),
    ],
)
def test_optimizers_that_do_not_suit_are_refused(optimizer, algorithm, words):
    with pytest.raises(ConfigError, match=words):
        hmtl.Federation(mlp(), [floats(5)(N)] * 5, algorithm=algorithm, solver=optimizer)


def test_parameters_made_in_forward_are_not_missed():
    def forward(module, x):
        x = nn.Parameter(x)
        return module.out(x + module.plain.sum())

    module = Called(forward, out=nn.Linear(5, C), plain=torch.zeros(3, requires_grad=True))
    hmtl.Federation(module, [floats(5)(N)] * 3, loss=lambda p, y: F.cross_entropy(p, y)).train(1)


def test_a_tensor_that_no_user_trains_is_refused():
    scale = torch.ones(C, requires_grad=True)
    with pytest.raises(ConfigError, match=r"shape \[3\].*copy of the model"):
        hmtl.Federation(mlp(), [floats(5)(N)] * 3, loss=lambda p, y: F.cross_entropy(p * scale, y))


@pytest.mark.parametrize("resize", [lambda t, n: t.resize_(n).fill_(1), lambda t, n: setattr(t, "data", torch.ones(n))])
def test_tensors_that_are_resized_in_place_become_as_they_were(resize):
    def forward(module, x):
        resize(module.ones, len(x))
        return module.out(x) * module.ones[:, None]

    module = Called(forward, out=nn.Linear(5, C), ones=torch.zeros(1))
    models = hmtl.Federation(module, [floats(5)(N + user) for user in range(3)]).train(2)
    assert all(model.ones.tolist() == [0] for model in (module, *models))


@pytest.mark.parametrize("is_stored", [True, False])
def test_it_is_said_whose_rows_fail(is_stored):
    def forward(module, x):
        if (x > 50).any():
            raise RuntimeError("a number above 50")
        return module.out(x)

    def item(user, i):
        if user == 2 and i == N - 1 and not is_stored:
            raise OSError("a file is damaged")
        return draw(5, seed=i), i % C

    data = [Listed(N, partial(item, user)) for user in range(3)]
    words = r"training rows of user 2 .*OSError: a file is damaged"
    if is_stored:
        data = [TensorDataset(draw(N, 5) + 100 * (user == 2), labels(N)) for user in range(3)]
        words = r"rows of user 2 \(RuntimeError: a number above 50\)"
    with pytest.raises(DataError, match=words):
        hmtl.Federation(Called(forward, out=nn.Linear(5, C)), data).train(1)


def named(name, n, **others):
    x = draw(n, 5)
    return Listed(n, lambda i: {name: x[i], "label": i % C, **others})


def test_the_only_entry_may_have_another_name_for_a_user_or_in_test_rows():
    """Rows count, not what they are called, also beside pairs."""
    module, pairs = mlp(), Listed(N, lambda i: (draw(N, 5)[i], i % C))
    want = hmtl.Federation(module, [(pairs, pairs)] * 3)
    got = hmtl.Federation(module, [(named("image", N), named("pixels", N)), (named("x", N),) * 2, (pairs, pairs)])
    torch.testing.assert_close(numbers_of(got.train(2)), numbers_of(want.train(2)))
    assert got.history[-1]["test_error"] == want.history[-1]["test_error"]


@pytest.mark.parametrize("place", ["a later user", "test rows", "the first user"])
def test_dictionaries_with_more_than_one_tensor_are_refused_beside_others(place):
    data, other = named("image", N), named("image", N, mask=torch.ones(2))
    users = {"a later user": [data, other], "test rows": [data, (data, other)], "the first user": [other, data]}[place]
    with pytest.raises((ConfigError, DataError), match=r"image float32 .5., mask float32 .2."):
        hmtl.Federation(mlp(), users * 2).train(1)


def test_models_predict_on_what_was_trained_on(tmp_path):
    """A dictionary whose only tensor the module gets, and float64 as NumPy makes it; other rows are refused."""
    module, data = mlp(), named("image", N)
    models = hmtl.Federation(module, [data] * 3, output_dir=tmp_path).train(1)
    loaded, x = hmtl.load_run(tmp_path, module), draw(4, 5, seed=1)
    want = models[0](x).argmax(1).tolist()
    for given in (x, x.double().numpy(), {"image": x}, {"image": x.double()}, {"image": x, "file": ["a", "b"]}):
        assert list(loaded.predict("user 0", given)) == want
    for wrong in (x[:, :3], {"image": x, "mask": x}, {"image": x[:, :3]}):
        with pytest.raises(DataError, match=r"float32 \[[35]\]"):
            loaded.predict("user 0", wrong)


def test_bfloat16_models_predict_on_float64(tmp_path):
    module = mlp().bfloat16()
    data = Listed(N, lambda i: (draw(N, 5)[i].bfloat16(), i % C))
    models = hmtl.Federation(module, [data] * 3, output_dir=tmp_path).train(1)
    x = draw(4, 5, seed=1)
    want = models[0](x.bfloat16()).argmax(1).tolist()
    assert list(hmtl.load_run(tmp_path, module).predict("user 0", x.double().numpy())) == want


def of_slopes(output, y):
    scores, x = output
    (slopes,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return F.cross_entropy(scores, y) + slopes.square().mean()


@pytest.mark.parametrize("solver", [None, ADAMW])
@pytest.mark.parametrize("in_forward", [True, False])
def test_gradients_by_inputs_train_and_are_measured(in_forward, solver):
    """A penalty on slopes, or a module that returns a slope as a model of forces does, and the same in measuring."""

    def forward(module, x):
        x = x.detach().requires_grad_()
        scores = module.out(x.tanh())
        if in_forward:
            return torch.autograd.grad(scores.square().sum(), x, create_graph=True)[0]
        return scores, x

    y = draw(N, 5, seed=2) if in_forward else labels(N)
    module, data = Called(forward, out=nn.Linear(5, C)), TensorDataset(draw(N, 5), y)
    loss, want = nn.MSELoss() if in_forward else of_slopes, copy.deepcopy(module)
    given = solver or TorchTrainer(partial(torch.optim.SGD, lr=0.1), epochs=2, batch=N)
    federation = hmtl.Federation(module, [(data, data)], topology=symmetric(1, 1, 1), loss=loss, solver=given)
    (got,) = federation.train(1)
    if not solver:
        optimizer = torch.optim.SGD(want.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss(want(data.tensors[0]), y).backward()
            optimizer.step()
        torch.testing.assert_close(numbers_of([got]), numbers_of([want]))
    if in_forward:
        measured = float(loss(got(data.tensors[0]), y))
        assert federation.history[-1]["test_error"] == pytest.approx(measured, rel=1e-4)


def test_a_single_user_given_as_the_whole_data():
    data = floats(5)(N)
    with pytest.raises(DataError, match=r"Give \[data\] for a single user"):
        hmtl.Federation(mlp, {"train": data, "test": data})
    with pytest.raises(DataError, match=r"User 0 has no Datasets"):
        hmtl.Federation(mlp, [{}, {"train": data}])
