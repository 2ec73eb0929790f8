"""Random features with labels, for the tests of ranking."""

import numpy as np


def random_set(queries=60, gallery=300, identities=12, cameras=4, dim=8, seed=0):
    r = np.random.RandomState(seed)
    centres = r.standard_normal((identities, dim))
    qp, gp = r.randint(0, identities, queries), r.randint(0, identities, gallery)
    qf = (centres[qp] + r.standard_normal((queries, dim))).astype(np.float32)
    gf = (centres[gp] + r.standard_normal((gallery, dim))).astype(np.float32)
    return qf, gf, qp, r.randint(0, cameras, queries), gp, r.randint(0, cameras, gallery)
