"""Fig. 4 of Hu et al. 2022: loads for K = 50 users, two relays that hear (1/2 + d) K of them each, two (1/2 − d) K.

python experiments/fig4.py
"""

from load_figures import main

PANELS = {"K = 50, H = 4": [{"d": n / 20} for n in range(10)]}

if __name__ == "__main__":
    main("fig4", __doc__, "d", PANELS)
