"""Repeat MOCHA's Table 1, Human Activity Recognition: `python experiments/mocha_table1.py --har PATH`.

The protocol is that of Smith et al. 2017: one user per subject (30), sitting against the rest, 75 % of the rows for
training, λ from 1e-5 .. 10 by 5-fold cross-validation, mean test error and its standard error over 10 shuffles. They
report: global 2.23 (0.30), local 1.34 (0.21), MTL 0.46 (0.11) %.

Writes experiments/results/mocha_table1.csv.
"""

import argparse
from pathlib import Path

from compare import METHODS, RESULTS, compare
from paths import data_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, required=True, help="UCI's zip or folder, or the folder that contains it")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "mocha_table1.csv")
    args = parser.parse_args()
    data = ("dataset=har_subjects", data_path(args.har), "topology=any_r")
    compare(data, args.methods, args.seeds, args.rounds, "se", args.out)


if __name__ == "__main__":
    main()
