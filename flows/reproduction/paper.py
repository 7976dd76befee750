"""What the ReD-CaNe paper (Marchisio et al., DATE 2020) reports; profile.TABLE_IV has the rest of its Table IV."""

from __future__ import annotations

UNIT_ENERGY_PJ = {
    "additions": 0.0202,
    "multiplications": 0.5354,
    "divisions": 1.0717,
    "exponentials": 0.1578,
    "square_roots": 0.7805,
}
"""Table I: energy of one operation, 8 bits, 45 nm."""

DEEPCAPS_COUNTS = {
    "additions": 1.91e9,
    "multiplications": 2.15e9,
    "divisions": 4.17e6,
    "exponentials": 175e3,
    "square_roots": 502e3,
}
"""Table I: operations of one inference of its DeepCaps."""

ACCURACY = {
    ("deepcaps", "cifar-10"): 92.74,
    ("deepcaps", "svhn"): 97.56,
    ("deepcaps", "mnist"): 99.72,
    ("capsnet", "fashion-mnist"): 92.88,
    ("capsnet", "mnist"): 99.67,
}
"""Table II, percent, by network and data set."""

SHARES = {"multiplications": 96.0, "additions": 3.0}
"""Fig. 4: percent of the energy."""

SAVED = {"multipliers": 28.3, "adders": 1.9, "both": 30.2}
"""Fig. 5: percent of the energy that the multiplier NGR, the adder 5LT and both save."""

POWER_UW = {
    "mul8u_1JFF": 391, "mul8u_14VP": 364, "mul8u_GS2": 356, "mul8u_CK5": 345, "mul8u_7C1": 329, "mul8u_96D": 309,
    "mul8u_2HH": 302, "mul8u_NGR": 276, "mul8u_19DB": 206, "mul8u_DM1": 195, "mul8u_12N4": 142, "mul8u_1AGV": 95,
    "mul8u_YX7": 61, "mul8u_JV3": 34, "mul8u_QKX": 29,
}  # fmt: skip
"""Table IV: power of a multiplier."""

GAUSSIAN_LIKE, MULTIPLIERS = 31, 35
"""Sec. III-B: so many of its multipliers have a Gaussian-like error."""
