"""Run once in the process that commands are forked from: it parses, compiles and draws, so that commands need not."""

from contextlib import redirect_stdout
from io import StringIO
from tempfile import TemporaryDirectory

import torch

from hmtl.config.build import compose
from hmtl.train import train

torch.set_num_threads(1)  # a process with more threads cannot be forked
with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
    compose(f"output_dir={folder}", name="plan")
    train(compose(f"output_dir={folder}", "K=4", "H=3", "r=2", "dataset.rows_per_user=20", "rounds=1"))
