"""Fig. 7 of Hu et al. 2022: training time, K = 20 or 30 users, two relays that hear (1/2 + d) K of them
each, and two (1/2 − d) K.

python experiments/fig7.py --mnist FOLDER --har FOLDER
"""

from time_figures import main

PANELS = {f"K = {K}": [{"K": K, "d": n / 20} for n in range(10)] for K in (20, 30)}

if __name__ == "__main__":
    main("fig7", __doc__, "d", PANELS)
