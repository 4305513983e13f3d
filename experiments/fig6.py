"""Fig. 6 of Hu et al. 2022: training time, K = 10, 15, ..., 40 users, each on any r = 2 or 3 of H = 5 relays.

python experiments/fig6.py --mnist FOLDER --har FOLDER
"""

from time_figures import main

PANELS = {f"r = {r}": [{"r": r, "K": K} for K in range(10, 41, 5)] for r in (2, 3)}

if __name__ == "__main__":
    main("fig6", __doc__, "K", PANELS)
