"""MOCHA's Table 1 on Human Activity Recognition: `python experiments/mocha_table1.py --har PATH`.

The protocol of Smith et al. 2017: a user for each of 30 subjects, sitting against the rest, 75 % of the rows to train
on, λ by 5-fold cross-validation from 1e-5 .. 10, mean test error and its standard error over 10 shuffles. Published:
global 2.23 (0.30), local 1.34 (0.21), MTL 0.46 (0.11) %.

Writes experiments/results/mocha_table1.csv.
"""

import argparse
from pathlib import Path

from compare import METHODS, RESULTS, table
from places import data_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--har", type=Path, required=True, help="UCI's zip or folder, or the folder that it is in")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "mocha_table1.csv")
    args = parser.parse_args()
    data = ("dataset=har_subjects", data_in(args.har), "topology=any_r")
    table(data, args.methods, args.seeds, args.rounds, "se", args.out)


if __name__ == "__main__":
    main()
