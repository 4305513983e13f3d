"""Fig. 5 of Hu et al. 2022: training time, K = 20 users, H = 10 or 20 relays, each user on any r = 1, ..., 10.

python experiments/fig5.py --mnist FOLDER --har FOLDER
"""

from time_figures import main

PANELS = {f"H = {H}": [{"H": H, "r": r} for r in range(1, 11)] for H in (10, 20)}

if __name__ == "__main__":
    main("fig5", __doc__, "r", PANELS)
