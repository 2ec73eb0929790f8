"""Re-ranking as the paper writes it: dense matrices and a loop over images. The sparse form is held against this."""

import numpy as np


def squared_distances(a, b):
    return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(2)


def reciprocal(order, i, k):
    forward = order[i, :k]
    return forward[(order[forward, :k] == i).any(1)]


def memberships(distances, k1, k2, weights="exp", count_self=False):
    number = len(distances)
    original = distances**2 / (distances**2).max(1, keepdims=True)
    keyed = distances.copy()
    np.fill_diagonal(keyed, -1)  # an image comes first in its own list
    order = np.argsort(keyed, axis=1, kind="stable")
    V = np.zeros((number, number))
    for i in range(number):
        members = reciprocal(order, i, k1 + (not count_self))
        expanded = set(members)
        for j in members:
            half = reciprocal(order, j, int(np.around(k1 / 2)) + 1)
            if len(np.intersect1d(half, members)) > 2 / 3 * len(half):
                expanded |= set(half)
        expanded = sorted(expanded)
        weight = np.exp(-(original if weights == "exp" else distances)[i, expanded])
        V[i, expanded] = weight / weight.sum()
    return (np.stack([V[order[i, :k2]].mean(0) for i in range(number)]) if k2 > 1 else V), original


def jaccard(V, W):
    smaller = np.minimum(V[:, None], W[None]).sum(2)
    return 1 - smaller / (2 - smaller)


def rerank(query, gallery, k1=20, k2=6, lambda_value=0.3, **variant):
    together = np.concatenate([query, gallery])
    V, original = memberships(squared_distances(together, together), k1, k2, **variant)
    q = len(query)
    return (1 - lambda_value) * jaccard(V[:q], V[q:]) + lambda_value * original[:q, q:]
