"""Whatever is asked for wrongly: one line that says what, exit 2, and no results; by the hundred, through the commands.

Each command runs in a forked child. A case is what is typed, and what the line has to say.
"""

import io
import os
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run

WORDS = r"""
train loss=nope                          | loss=nope is unknown: choose one of cross_entropy, hinge, logistic
train algorithm=nope                     | choose one of cocoa, ditto
train solver=nope                        | choose one of sdca, sgd
train regularizer=nope                   | choose one of clustered, graph
train dataset=nope                       | choose one of files, har
train partition=nope                     | choose one of dirichlet
train participation=nope                 | choose one of dropout
train logger=nope                        | choose one of default, none
train engine=nope                        | choose one of in_process
train network=nope                       | choose one of default
train communicator=nope                  | choose one of coded, partial, sums, uncoded
train experiment=nope                    | choose one of fig3, .* or give the folder that has it by --config-dir
tune loss=nope                           | choose one of cross_entropy
plan topology=nope                       | choose one of any_r, file
plan network=nope                        | choose one of default
plan topology=[any_r,ring]               | Could not load 'topology/ring'
train topology=any_r,ring                | add --multirun
train hydra/launcher=nope                | hydra/launcher=nope is unknown: choose one of basic
train -m hydra/launcher=nope             | choose one of basic
train -m hydra/sweeper=nope              | choose one of basic
train topology=null                      | topology=null: a group cannot be null or a number, choose one of any_r
train algorithm=null                     | algorithm=null: a group cannot be null
train loss=3                             | loss=3: a group cannot be null or a number, choose one of cross_entropy
train solver=true                        | solver=true: a group cannot be
plan network=null                        | network=null: a group cannot be
plan rounds=3                            | no setting 'rounds' here, it is one of hmtl.train
plan loss=hinge                          | no setting 'loss' here, it is one of hmtl.train
plan communicator=coded                  | it is one of hmtl.train
train V_bits=3                           | no setting 'V_bits' here, it is one of hmtl.plan
tune format=json                         | it is one of hmtl.plan
plan V_bit=3                             | did you mean 'V_bits'?
train rouns=3                            | did you mean 'rounds'?
train +lamda=1                           | did you mean 'lam'?
train +foo=1                             | no setting 'foo': see --help
train medium=unicast                     | did you mean 'network.medium'?
train communicator.medium=unicast        | did you mean 'network.medium'?
train +communicator.medium=unicast network.medium=broadcast | communicator.medium: .* takes no such setting
train topology=geometric topology.radus=1 | did you mean 'topology.radius'?
train topology=any_r topology.seeds=1    | did you mean 'topology.seed'?
train solver.pases=3                     | did you mean 'solver.passes'?
train +solver.pases=3                    | takes no such setting; .*did you mean 'solver.passes'?
train algorithm.omega_evry=3             | did you mean 'algorithm.omega_every'?
train dataset.row_per_user=3             | did you mean 'dataset.rows_per_user'?
train participation.droput=0.1           | did you mean 'participation.dropout'?
train network.mediun=unicast             | did you mean 'network.medium'?
plan network.mediun=unicast              | did you mean 'network.medium'?
train tune.fold=3                        | did you mean 'tune.folds'?
tune +tune.fold=3                        | did you mean 'tune.folds'?
train logger.tensorboard.foldr=x                 | did you mean 'logger.tensorboard.folder'?
train +engine.foo=1                      | engine.foo: hmtl.training.engine.Engine takes no such setting
train +loss.foo=1                        | loss.foo: hmtl.mtl.Hinge takes no such setting
train ~loss                              | loss is null or has no _target_
train ~topology.K                        | missing a required argument: 'K'
train ~foo                               | 'foo' does not exist
plan ~network                            | network is null or has no _target_
train K==3                               | Error parsing override
train K                                  | missing EQUAL
train =3                                 | must be a string or a list
train K=[1                               | no viable alternative
train 'K =3'                             | error
train ''                                 | mismatched input
train K=${nope}                          | 'nope' not found \(K\)
train K=${K}                             | Recursive interpolation
train K=${oc.env:NOT_SET_AT_ALL}         | NOT_SET_AT_ALL
train --foo                              | unrecognized arguments: --foo
train -cd                                | expected one argument
plan --cfg nope                          | invalid choice: 'nope'
train --info nope                        | invalid choice
train --config-name nope                 | Cannot find primary config 'nope'
train --config-dir nope                  | nope' not found
train hydra.searchpath=[nope]            | path=nope is not available
train hydra.run.dir=/proc/x/y            | /proc/x: .*choose a folder that can be written to
plan hydra.run.dir=/dev/null/x           | Not a directory
train resume=                            | resume is empty
plan output_dir=                         | output_dir is empty
train topology=file                      | topology.path is not set
train dataset=files                      | dataset.path is not set
train dataset=files dataset.path=no.csv  | no.csv is not there. Give a table, or a folder or pattern
train algorithm=fedu loss=logistic solver.step=1e20 rounds=2 dataset.rows_per_user=20 | lower solver.step
"""

TARGETS = r"""
train loss._target_=hmtl.mtl.Hing        | hmtl.mtl has no Hing: did you mean hmtl.mtl.Hinge?
train loss._target_=hmtl.mlt.Hinge       | hmtl has no mlt: did you mean hmtl.mtl?
train loss._target_=nope.Hinge           | there is no module nope
train loss._target_=broken.Loss          | broken cannot be imported \(ZeroDivisionError: .*\)
train loss._target_=leaves.Loss          | leaves cannot be imported \(SystemExit: 7\)
train loss._target_=wanting.Loss         | wanting cannot be imported \(ModuleNotFoundError: .*not_there
train loss._target_=Hinge                | the full name of a class or function is needed
train loss._target_=                     | the full name
train loss._target_=null                 | the full name
train loss._target_=3                    | the full name
train loss._target_=[hmtl.mtl.Hinge]     | the full name
train loss._target_=hmtl..mtl.Hinge      | the full name
train loss._target_=sys.exit             | loss._target_=sys.exit makes no Loss
train loss._target_=os.getcwd            | makes no Loss
train loss._target_=builtins.dict        | makes no Loss
train loss._target_=math.pi              | is a float, not a class or function
train loss._target_=os.path              | is a module, not a class or function
train loss._target_=os._exit             | missing a required argument
train loss._target_=hmtl.mtl.SDCA        | makes no Loss
train loss._target_=hmtl.mtl.Loss        | abstract
train +solver._args_=[1]                 | multiple values
train regularizer._target_=hmtl.mtl.Hinge | makes no Regularizer
train solver._target_=hmtl.mtl.Hinge     | makes no LocalSolver or LocalSGD
train algorithm._target_=hmtl.mtl.Hinge  | makes no Algorithm
train algorithm._target_=hmtl.mtl.FedU   | algorithm.omega_every: hmtl.mtl.FedU takes no such setting
train topology._target_=builtins.dict    | makes no Topology or Moving
train topology._target_=hmtl.topology.Topology | topology.K: .* takes no such setting
train dataset._target_=builtins.dict     | makes no tuple or list
train network._target_=hmtl.communication.Uncoded | makes no Network
train communicator._target_=hmtl.communication.Network | makes no Communicator
train participation._target_=builtins.dict | makes no Participation
train engine._target_=builtins.object    | makes no Engine
train logger.tensorboard._target_=builtins.dict  | makes no Logger
train partition=dirichlet partition._target_=hmtl.data.Dirichlets | did you mean hmtl.data.Dirichlet?
train dataset._target_=hungry.tasks      | the memory does not hold so much \(.*\): choose smaller numbers
train dataset._target_=hungry.others     | the memory does not hold so much \(.*\): choose smaller numbers
train partition=dirichlet partition._target_=builtins.dict | makes no Callable
train algorithm=fedu algorithm.model._target_=hmtl.mtl.mlpp | did you mean hmtl.mtl.mlp?
train algorithm=fedu algorithm.model=3   | algorithm.model=3: a _target_ is needed
train algorithm=fedu algorithm.model=null | algorithm.model=null: a _target_ is needed
train algorithm=fedu algorithm.model._target_=hmtl.mtl.mlp +algorithm.model.hiden=3 | did you mean 'algorithm.model.hid
train algorithm=fedu algorithm.model._target_=hmtl.mtl.mlp +algorithm.model.hidden=[3] | hidden=\[3\]: a whole number
train +logger.foo=3                      | each part needs a _target_
tune solver._target_=hmtl.mtl.SDC        | did you mean hmtl.mtl.SDCA?
plan topology._target_=hmtl.topology.symetric | did you mean hmtl.topology.symmetric?
plan network._target_=sys.exit           | network.W1: sys.exit takes no such setting
"""

VALUES = r"""
train K=abc                              | 'abc' .* could not be converted to Integer
train K=1,2                              | Ambiguous value
train K=[1,2]                            | could not be converted
train K=1e400                            | could not be converted
train K=100000000000000000000            | out of range
train K=null                             | K=None
train K=0                                | K=0
train H=0                                | H=0
train H=1000000 r=1                      | too many: there are at most
train r=9                                | r=9
train r=2.5                              | r=2.5
train r=nan                              | out of range
train lam=[1]                            | could not be converted
train lam=null                           | not Optional
train lam=nan                            | lam=nan is out of range
train lam=inf                            | lam=inf is out of range
train lam=-1                             | lam=-1
train seed=-1                            | seed=-1 is out of range
train seed=0.5                           | could not be converted
train rounds=0                           | rounds=0
train rounds=1.5                         | could not be converted
train rounds=99999999999999999999        | out of range
train checkpoint_every=0                 | checkpoint_every=0
train evaluate_every=0                   | evaluate_every=0
train gap_tolerance=nan                  | gap_tolerance=nan
train device=meta                        | device=meta is not available
train device=cuda:77                     | device=cuda:77 is not available
train wire=float8                        | wire=float8
train scheme=magic                       | scheme=magic is unknown
train aggregators=some                   | aggregators=some is unknown
train aggregators=[0,7]                  | relays from 0 to 4
train aggregators=[null]                 | communicator.aggregators\[0\]=null: a whole number
train aggregators=[0.5]                  | aggregators\[0\]=0.5: a whole number
train aggregators=[[0]]                  | aggregators\[0\]=\[0\]: a whole number
train aggregators=null                   | aggregators=null: a name or a list
train aggregators={a:1}                  | a name or a list
train aggregators=[0,0]                  | distinct relays from 0 to 4
train algorithm.rounds=-1                | rounds=-1: there is at least one
train algorithm.rounds=0                 | rounds=0: there is at least one
train network.W1=1e-320                  | network.W1=1e-320 is below 1e-06
train network.uplink_bps=[1,2,3,4,1e-9]  | network.uplink_bps\[4\]=1e-09 is below
plan network.W2=1e-320                   | network.W2=1e-320 is below
train +loss._partial_=true               | loss._partial_=true: it is to be made at once
train +solver._partial_=abc              | solver._partial_=abc: true or false
train +loss._convert_=nope               | loss._convert_=nope: one of none, partial, object, all
train +loss._recursive_=3                | loss._recursive_=3: true or false
train +topology._args_=3                 | topology._args_=3: a list
train +loss._foo=3                       | loss._foo: hmtl.mtl.Hinge takes no such setting
plan +network._partial_=true             | network._partial_=true
train fraction_bits=61                   | fraction_bits=61
train topology.K=[20]                    | topology.K=\[20\]: a whole number
train topology.r=[3]                     | topology.r=\[3\]: a number
train topology=any_r topology.seed=-1    | .*.seed=-1 is below 0
train topology=any_r topology.seed=[1]   | topology.seed=\[1\]: a whole number
train topology=any_r topology.seed=1.5   | topology.seed=1.5: a whole number
train topology=geometric topology.radius=[1] | topology.radius=\[1\]: a number
train topology=geometric topology.radius=inf | finite
train topology=moving topology.every=1.5 | topology.every=1.5: a whole number
train topology=moving topology.path=[1]  | topology.path=\[1\]: .*a name
train topology=file topology.path={a:1}  | topology.path=\{'a': 1\}: a name
train topology=file topology.path=       | topology.path='': a name
train dataset.seed=-1                    | .*.seed=-1 is below 0
train dataset.rows_per_user=3            | rows_per_user=3
train dataset.test_fraction=[0.2]        | dataset.test_fraction=\[0.2\]: a number
train dataset.test_fraction=1            | test_fraction=1
train dataset.intercept=3                | dataset.intercept=3: true or false
train dataset.standardize=nope           | dataset.standardize=nope: one of task, all, none
train solver.passes=0                    | passes=0
train solver.passes=1e300                | passes=1e\+300
train solver=sgd algorithm=fedu solver.epochs=1.5 | solver.epochs=1.5: a whole number
train solver=sgd algorithm=fedu solver.step=1e300 | step=1e\+300
train algorithm.accelerated=abc          | algorithm.accelerated=abc: true or false
train algorithm.seed=-1                  | .*.seed=-1 is below 0
train algorithm=pfedme algorithm.local_rounds=1.5 | a whole number
train network.W1=0                       | network.W1=0
train network.W1=abc                     | network.W1=abc: a number
train network.uplink_bps=3               | network.uplink_bps=3: .*a list
train network.uplink_bps=[1,2]           | has 2 entries for H=5
train network.uplink_bps=[1,2,3,4,null]  | network.uplink_bps\[4\]=null: a number
train network.uplink_bps=[1,2,3,4,a]     | network.uplink_bps\[4\]=a: a number
train network.uplink_bps=[1,2,3,4,[5]]   | network.uplink_bps\[4\]=\[5\]: a number
train network.uplink_bps=[1,2,3,4,inf]   | uplink_bps\[4\]=inf: .*finite
train network.uplink_bps={a:1}           | null or a list
train participation.speeds=[a]           | participation.speeds\[0\]=a: a number
train participation.speeds=[1,2]         | speeds
train participation.dropout=1            | dropout=1
train participation.schedule=[3]         | participation.schedule\[0\]=3: a list
train participation.schedule=[[1,2,3]]   | pairs
train participation.schedule=[[1,99]]    | no user 99
train participation.schedule=[[1.5,0]]   | schedule\[0\]\[0\]=1.5: a whole number
train participation.schedule=[[-1,0]]    | count from 0
train participation.schedule=[[null,0]]  | schedule\[0\]\[0\]=null
train participation.schedule=[[true,0]]  | schedule\[0\]\[0\]=true
train participation.relays=[[1.5,0]]     | relays\[0\]\[0\]=1.5
train participation.relays=[[0,99]]      | no relay 99
train communicator.seed=-1               | .*.seed=-1 is below 0
train communicator.max_pieces=0          | max_pieces=0
train communicator.scheme=nope           | scheme=nope is unknown
train engine=torch_distributed           | RANK is not set
train engine=torch_distributed engine.seconds=[3] | engine.seconds=\[3\]: a number
train logger.tensorboard=3               | each part needs a _target_
train partition=dirichlet partition.alpha=nan | finite
train partition=dirichlet partition.min_rows=1.5 | a whole number
train partition=pathological partition.classes_per_user=99 | classes_per_user=99
tune rounds=0                            | rounds=0
tune tune.folds=1                        | tune.folds=1
tune tune.folds=[5]                      | could not be converted
tune tune.folds=null                     | not Optional
tune tune=3                              | tune=3
tune tune.grid=3                         | no list
tune tune.grid=[]                        | at least one value
tune tune.grid=[abc]                     | could not be converted to Float
tune tune.grid=[null]                    | not Optional
tune tune.grid=[[1]]                     | no list of numbers
tune tune.grid={}                        | at least one value
tune tune.grid={nope:[1]}                | no setting 'nope'
tune tune.grid={rounds:[1]}              | rounds cannot be tuned
tune tune.grid={solver.passes:[a]}       | solver.passes=a: a number
tune tune.grid={solver.pases:[1,2]}      | did you mean 'solver.passes'?
tune seed=-1                             | seed=-1
tune gap_tolerance=-1                    | gap_tolerance=-1
tune scheme=magic                        | scheme=magic
plan V_bits=0                            | V_bits=0
plan V_bits=[1]                          | could not be converted
plan format=xml                          | format=xml is unknown
plan seed=-1                             | seed=-1
plan K=1000000000                        | too many
plan r=9                                 | r=9
plan topology=heterogeneous d=0.9        | d=0.9
plan topology=heterogeneous H=3          | H=3 is odd
plan network.uplink_bps=[1,2,3,4,null]   | network.uplink_bps\[4\]=null
plan network.medium=smoke                | network.medium=smoke
"""

CONTRADICTIONS = r"""
train scheme=paper communicator=uncoded  | scheme=paper has no meaning here: it is for communicator=coded
train aggregators=all communicator=sums  | aggregators=all has no meaning here
train aggregators=[0] communicator=uncoded | aggregators=\[0\] has no meaning here
train aggregators=server communicator=partial | has no meaning here
train scheme=equal communicator.scheme=paper | scheme=equal has no meaning here
train lam=0.2 regularizer.lam=0.1        | lam=0.2 has no meaning here
train d=0.2                              | d=0.2 has no meaning here: it is for topology=heterogeneous
plan d=0.2                               | d=0.2 has no meaning here
tune scheme=paper communicator=uncoded   | scheme=paper has no meaning here
train +communicator.seed=3 communicator=sums | communicator.seed: .* takes no such setting
train wire=float32 communicator=sums algorithm=fedavg | wire=float32 with communicator=sums
train topology=geometric r=2             | r=2, but the topology has r=.*: set it to that, or to null
train solver=sgd                         | works on duals
train algorithm=fedu solver=sdca         | works by gradients
train communicator=sums                  | needs all IVs
train algorithm=fedavg regularizer=graph | regularizer=hmtl.mtl.Graph has no meaning here: hmtl.mtl.FedAvg has its own
train algorithm=local regularizer=mean   | regularizer=hmtl.mtl.Mean has no meaning here
train algorithm=cocoa regularizer=ridge  | regularizer=hmtl.mtl.Ridge has no meaning here
tune algorithm=ditto regularizer=clustered | regularizer=hmtl.mtl.Clustered has no meaning here
"""

NUMBERS = """
K H r topology.K topology.H topology.r seed rounds lam gap_tolerance checkpoint_every fraction_bits dataset.seed
dataset.test_fraction solver.passes algorithm.omega_every algorithm.gamma algorithm.seed regularizer.lam
regularizer.floor network.W1 network.W2 participation.low participation.high participation.dropout communicator.seed
communicator.max_pieces communicator.generation logger.console.rounds tune.folds
"""
"""Numeric settings of the default run: none takes a list, a word or names with values."""


def cases(table: str) -> list[tuple[str, str]]:
    return [
        (typed.strip(), told.strip())
        for typed, _, told in (line.partition(" | ") for line in table.split("\n"))
        if told
    ]


TYPED = [case for table in (WORDS, TARGETS, VALUES, CONTRADICTIONS) for case in cases(table)]
TYPED += [(f"train {name}={('[1]', 'abc', '{a:1}')[n % 3]}", "error") for n, name in enumerate(NUMBERS.split())]
MODULES = {
    "broken": "1 / 0",
    "leaves": "raise SystemExit(7)",
    "wanting": "import not_there",
    "hungry": "import numpy, torch\ndef tasks(**_): torch.empty(10**15)\ndef others(**_): numpy.empty(10**15)",
}


def refused(folder: Path, command: str, words: list[str], told: str) -> None:
    """It is, in one line, and nothing is left. (Hydra's own copies of the configuration take long to write.)"""
    if not any("hydra.run.dir" in word or word.startswith("-") for word in words):
        words = [*words, "hydra.run.dir=results", "hydra.output_subdir=null"]
    done = run(command, words, folder)
    assert re.fullmatch("error: .*\n", done.err), done.err[-3000:]
    assert re.search(told.removesuffix("?"), done.err), done.err
    assert (done.status, done.out) == (2, "")
    assert {path.name for path in folder.glob("results/*")} <= {".lock"}


@pytest.mark.parametrize(("typed", "told"), TYPED, ids=[typed for typed, _ in TYPED])
def test_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, told: str) -> None:
    command, *words = shlex.split(typed)
    if command != "plan" and not re.search("-|dataset|partition|logger=none", typed):
        words = ["dataset.rows_per_user=20", *words]  # what has to be read, is read soon
    for name, text in MODULES.items():
        if f"={name}." in typed:
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.syspath_prepend(tmp_path)
    refused(tmp_path, command, words, told)


CONTACTS = "train topology=moving topology.path={} K=null H=null"
GRAPH = "train K=4 H=3 r=2 dataset.rows_per_user=20 regularizer=graph regularizer.path={}"
HAR = "train dataset=har dataset.download=false dataset.path={}"


# Files. Each is made by a function of its path.
Make = Callable[[Path], object]
G = np.array([[1, 1, 0, 1], [0, 1, 1, 0]])
X, Y = np.random.default_rng(0).normal(size=(12, 2)), np.tile([-1.0, 1.0], 6)


def text(content: str | bytes) -> Make:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def npz(compressed: bool = False, **arrays: object) -> Make:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)  # type: ignore[arg-type]

    return make


def changed(make: Make, change: Callable[[bytes], bytes]) -> Make:
    def made(path: Path) -> None:
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return made


def encrypted(whole: bytes) -> bytes:
    """With the flag that says so in each header of a zip."""
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = whole.find(mark)
        while at >= 0:
            whole = whole[: at + offset] + bytes([whole[at + offset] | 1]) + whole[at + offset + 1 :]
            at = whole.find(mark, at + 1)
    return whole


def claiming(name: str, header: str) -> Make:
    """An npz whose one array claims to be what its header says, and has no content."""

    def make(path: Path) -> None:
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (1,)})
        start = content.getvalue()[:10]
        body = header.encode().ljust(len(content.getvalue()) - 11) + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.npy", start + body)

    return make


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(nbytes: int) -> Make:
    return lambda path: (path.touch(), os.truncate(path, nbytes))


def damaged(whole: bytes) -> bytes:
    """Here and there, up to the directory at its end."""
    return bytes(byte ^ 0x55 * (60 < n < len(whole) - 400 and n % 40 == 0) for n, byte in enumerate(whole))


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (400000, 400000), }"
NEGATIVE = "{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 4), }"
CODE = "{'descr': '<f8', 'fortran_order': False, 'shape': __import__('os').getcwd(), }"
EITHER: dict[str, Make] = {  # what no npz may be, with arrays G, x and y
    "cut": changed(npz(G=G, x=X, y=Y), lambda whole: whole[: len(whole) // 2]),
    "encrypted": changed(npz(G=G, x=X, y=Y), encrypted),
    "damaged": changed(npz(True, G=np.tile(G, 50), x=np.tile(X, (9, 1)), y=np.tile(Y, 9)), damaged),
    "no zip": text("0,1\n1,0\n"),
    "empty": text(""),
    "objects": npz(G=G.astype(object), x=X.astype(object), y=Y.astype(object)),
    "structured": npz(G=np.zeros((2, 4), "i4,f4"), x=np.zeros((12, 2), "i4,f4"), y=Y),
    "complex": npz(G=G + 0j, x=X + 1j, y=Y),
    "dates": npz(G=G.astype("M8[s]"), x=X.astype("M8[s]"), y=Y),
    "a pipe": a_pipe,
    "a device": a_device,
    "a folder": lambda path: path.mkdir(),
}

FILES: list[tuple[str, str, Make, str]] = [  # words, where {} is the file; its ending; its maker; what is told
    *(("plan topology=file topology.path={}", ".npz", make, "x.npz") for make in EITHER.values()),
    *(("train topology=file topology.path={}", ".npz", EITHER[what], "x.npz") for what in ("encrypted", "a pipe")),
    *(
        ("train dataset=files dataset.path={}", ".npz", make, "x.npz")
        for name, make in EITHER.items()
        if "a " not in name
    ),
    *((GRAPH, ".npz", make, "x.npz") for make in EITHER.values()),
    *(("plan topology=file topology.path={}", ".npz", claiming("G", each), "x.npz") for each in (HUGE, NEGATIVE, CODE)),
    ("train dataset=files dataset.path={}", ".npz", claiming("x", HUGE), "x.npz"),
    (GRAPH, ".npz", claiming("x", HUGE), "x.npz"),
    ("plan topology=file topology.path={}", ".csv", text("relay,user\n0,0\n9999999,1\n"), "too many"),
    ("plan topology=file topology.path={}", ".csv", text("user,relay\n0,0\n1,10001\n"), "too many"),
    ("plan topology=file topology.path={}", ".csv", text("0,0\n1,3\n"), "No relay hears"),
    ("plan topology=file topology.path={}", ".csv", text(""), "empty"),
    ("plan topology=file topology.path={}", ".csv", text(b"\xff\xfe\x00"), "not UTF-8"),
    ("plan topology=file topology.path={}", ".csv", text("1,0,1\n0,1\n"), "Line 2"),
    ("plan topology=file topology.path={}", ".csv", text("1,0,1\n0,nan,1\n"), "entry 2 is 'nan'"),
    ("plan topology=file topology.path={}", ".csv", large(200_000_000), "more than 100,000,000"),
    ("plan topology=file topology.path={}", ".csv", a_pipe, "pipe or device"),
    ("plan topology=file topology.path={}", ".csv", a_device, "pipe or device"),
    ("plan topology=file topology.path={}.not", ".csv", text("1,1\n"), "No such file"),
    (
        CONTACTS,
        ".csv",
        text("round,relay,user\n0,9999999,0\n"),
        "too many",
    ),
    (CONTACTS, ".csv", text("round,relay,user\n1,0,0\n"), "round 0"),
    (CONTACTS, ".csv", text("a,b\n1,0\n"), "no contacts"),
    (CONTACTS, ".csv", a_pipe, "pipe or device"),
    (
        "train topology=moving topology.path={}",
        ".csv",
        text("round,relay,user\n0,0,0\n0,1,1\n"),
        "K=20, but the topology",
    ),
    ("train dataset=files dataset.path={}", ".csv", text("a,b,y\n1,2,yes\n"), "is one table: set dataset.task"),
    ("train dataset=files dataset.path={} dataset.task=who", ".csv", text("a,y\n1,yes\n"), "no column who"),
    ("train dataset=files dataset.path={} dataset.task=who", ".csv", text(""), "cannot be read"),
    ("train dataset=files dataset.path={} dataset.task=who", ".csv", text(b"\x00\xff\xfe" * 9), "x.csv"),
    ("train dataset=files dataset.path={} dataset.task=who", ".csv", text("a,y,who\nx,yes,1\n"), "a finite number"),
    ("train dataset=files dataset.path={} dataset.task=who", ".csv", text("a,y,who\ninf,yes,1\n"), "a finite number"),
    ("train dataset=files dataset.path={} dataset.task=who", ".csv", text("a,a,y,who\n1,1,yes,1\n"), "stands twice"),
    ("train dataset=files dataset.path={} dataset.task=who", ".parquet", text("PAR1 not"), "cannot be read"),
    ("train dataset=files dataset.path={}", ".csv", a_pipe, "has no file"),
    ("train dataset=files dataset.path={}.not", ".csv", text("1"), "is not there"),
    ("train dataset=mnist dataset.download=false dataset.path={}", ".csv", text("1"), "MNIST is not in"),
    (HAR, ".zip", text("no zip"), "damaged or not UCI's"),
    (
        HAR,
        ".zip",
        changed(npz(x=X), encrypted),
        "damaged or not",
    ),
    ("train participation.schedule={}", ".csv", text("1,2,3\n"), "pairs"),
    ("train participation.schedule={}", ".csv", text("a,b\n"), "pairs"),
    ("train participation.schedule={}", ".csv", text("1.5,0\n"), "pairs"),
    ("train participation.schedule={}", ".csv", text("0,99\n"), "no user 99"),
    ("train participation.relays={}", ".csv", a_pipe, "pipe or device"),
    ("train participation.relays={}", ".csv", a_device, "pipe or device"),
    (GRAPH, ".csv", text("1,2\n3,4\n"), "shape"),
    (GRAPH, ".csv", text("a"), "x.csv"),
    (GRAPH, ".csv", a_pipe, "pipe or device"),
    ("train resume={}", ".pt", text(""), "x.pt"),
    ("train resume={}", ".pt", text("no checkpoint"), "x.pt"),
    ("train resume={}", ".pt", npz(G=G), "x.pt"),
    ("train resume={}", ".pt", lambda path: torch.save({"identity": {}}, path), "x.pt"),
    ("train resume={}", ".pt", lambda path: torch.save([1, 2], path), "x.pt"),
    ("train resume={}", ".pt", lambda path: torch.save(torch.nn.Linear(1, 1), path), "x.pt"),
    ("train resume={}", ".pt", changed(lambda path: torch.save({"identity": {}}, path), lambda b: b[:-9]), "x.pt"),
    ("train resume={}", ".pt", a_pipe, "x.pt"),
    ("train resume={}", ".pt", a_device, "x.pt"),
    ("tune resume={}", ".pt", text("no checkpoint"), "x.pt"),
    ("train resume={}.not", ".pt", text(""), "x.pt.not"),
    ("train --config-dir {} experiment=x", ".yaml", text("a: 1"), "x.yaml"),
]


@pytest.mark.parametrize(
    ("typed", "ending", "make", "told"), FILES, ids=[f"{n}-{case[0]}" for n, case in enumerate(FILES)]
)
def test_files(tmp_path: Path, typed: str, ending: str, make: Make, told: str) -> None:
    file = tmp_path / f"x{ending}"
    if "dataset=files dataset.path={}" in typed and ending == ".npz":  # a folder of tasks
        (tmp_path / "x").mkdir()
        npz(x=X, y=Y)(tmp_path / "x" / "a.npz")
        file, typed = tmp_path / "x" / "x.npz", typed.replace("{}", str(tmp_path / "x"))
    make(file)
    command, *words = shlex.split(typed.replace("{}", str(file)))
    refused(tmp_path, command, words, told)


def test_a_learner_that_diverges(tmp_path: Path) -> None:
    words = ["K=4", "rounds=3", "dataset.rows_per_user=20", "lam=1e-320", "logger=none", "hydra.run.dir=results"]
    done = run("train", words, tmp_path)
    assert (done.status, done.out) == (2, "")
    assert re.fullmatch("error: the models are no finite numbers any more: .*\n", done.err)
    assert not (tmp_path / "results" / "summary.json").exists()


def test_there_are_enough() -> None:
    assert len(TYPED) + len(FILES) >= 300
