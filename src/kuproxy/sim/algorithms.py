"""Ways to choose a pod for a flow, the data plane's own among them, as functions over whole arrays of flow hashes.

Every one takes the same pods with the same weights and one size:

- `maglev`: the new-flow table of the data plane, a power of two of slots, filled by control's own code;
- `prime-maglev`: the table of the paper (Eisenbud et al., NSDI 2016, section 3.4): the next prime of slots;
- `rendezvous`: highest random weight (Thaler and Ravishankar 1998), weighted as -weight / ln(u); it has no table;
- `ring-hash`: consistent hashing on a circle (Karger et al. 1997) with as many points in all as the size says;
- `modulo`: the hash modulo the pods, the one that everything else was invented to replace.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import numpy as np

from kuproxy.control.compile.rings import fill
from kuproxy.control.compile.words import word_columns
from kuproxy.model.vip import Pod
from kuproxy.sim.kernels import fill_prime, highest_weights

__all__ = ["Algorithm", "choose", "mixed", "next_prime", "pod_words"]

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Algorithm(enum.Enum):
    """By the names that the command takes."""

    MAGLEV = "maglev"
    PRIME = "prime-maglev"
    RENDEZVOUS = "rendezvous"
    RING = "ring-hash"
    MODULO = "modulo"


def mixed(words: np.ndarray) -> np.ndarray:
    """uint64 like `words` (uint64): every bit depends on every bit; nothing collides."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def next_prime(number: int) -> int:
    """The least prime above; 65537 for 65536."""
    number += 1
    while number < 2 or any(number % d == 0 for d in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


def pod_words(pods: Sequence[Pod]) -> np.ndarray:
    """uint64[pods]: what stands for a pod in the hashes of the other algorithms; its address and port."""
    hi, lo = word_columns(pods)
    return mixed(hi ^ mixed(lo + np.array([pod.port for pod in pods], np.uint64) * _STEP))


def _circle(words: np.ndarray, weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64[points] sorted, int64[points] their pods): at least one point a pod."""
    points = np.maximum(1, np.rint(size * weights / weights.sum())).astype(np.int64)
    pod = np.repeat(np.arange(len(words)), points)
    number = np.arange(len(pod)) - np.repeat(np.cumsum(points) - points, points)
    place = mixed(words[pod] + number.astype(np.uint64) * _STEP)
    order = np.argsort(place, kind="stable")
    return place[order], pod[order]


def choose(algorithm: Algorithm, pods: Sequence[Pod], size: int, hashes: np.ndarray) -> np.ndarray:
    """int64[flows]: for each flow hash (uint32[flows]) a position in `pods`, -1 if none may serve.

    Pods of weight 0 get nothing.  `size` must be a power of two for MAGLEV, and is at least the number of pods for
    whoever wants fair tables.
    """
    order = sorted(range(len(pods)), key=lambda position: pods[position])
    order = [position for position in order if pods[position].weight]
    if not order:
        return np.full(len(hashes), -1, np.int64)
    serving = [pods[position] for position in order]
    weights = np.array([pod.weight for pod in serving], np.int64)
    hashes = hashes.astype(np.int64)
    if algorithm is Algorithm.MAGLEV:
        ring = np.empty(size, np.uint32)
        fill(serving, np.arange(1, len(serving) + 1, dtype=np.uint32), ring)
        chosen = ring.astype(np.int64)[hashes & (size - 1)] - 1
    elif algorithm is Algorithm.PRIME:
        slots = next_prime(size)
        hi, lo = word_columns(serving)
        table = np.full(slots, -1, np.int64)
        fill_prime(hi, lo, weights, np.empty((2, len(serving)), np.int64), table)
        chosen = table[hashes % slots]
    elif algorithm is Algorithm.MODULO:
        turns = weights // math.gcd(*weights.tolist())
        chosen = np.repeat(np.arange(len(serving)), turns)[hashes % int(turns.sum())]
    else:
        keys = mixed(hashes.astype(np.uint64) + _STEP)
        words = pod_words(serving)
        if algorithm is Algorithm.RING:
            places, owners = _circle(words, weights, size)
            chosen = owners[np.searchsorted(places, keys) % len(places)]
        else:
            chosen = np.empty(len(keys), np.int64)
            highest_weights(keys, words, weights.astype(np.float64), chosen)
    return np.array(order, np.int64)[chosen]
