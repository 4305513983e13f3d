"""Fig. 3 of Hu et al. 2022: loads for K = 10, 20, ..., 100 users, H = 5 or 10 relays, each user on any 3 of them.

python experiments/fig3.py
"""

from load_figures import main

PANELS = {f"H = {H}": [{"H": H, "K": K} for K in range(10, 101, 10)] for H in (5, 10)}

if __name__ == "__main__":
    main("fig3", __doc__, "K", PANELS)
