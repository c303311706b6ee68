"""Fits what the scores of an embedding space mean.

Usage: python identity.py fit IDENTITIES.jsonl STRANGERS.jsonl
       python identity.py reliability < people.json

`fit` prints an entry of deploy/published.toml. Both files are what `visage predict --json --embedding` prints: IDENTITIES of photos whose folder is the person's name,
STRANGERS of photos of many people, one each as far as is known. Needs numpy.

The probability is a logistic function of the cosine, fitted by Newton's method on all pairs of IDENTITIES, same and
different people in equal weight (Platt 1999, with his targets). Its bounds come from resampling people. The false-match
rate is the share of pairs of STRANGERS that score at least so much; its bounds come from resampling photos (Bickel
and Freedman's bootstrap of a U-statistic), because pairs that share a photo are not independent. Some strangers are the
same person after all: that makes the rate too high, never too low.

`reliability` reads {"people": {NAME: [VECTOR, ...]}} and prints what a fit says of people that it has not seen, as one
JSON object: every two people are left out in turn. `bins` have the mean probability `answered`, the `truth`, the share of
pairs that are one person's, and `n_pairs`; `brier` is the mean squared error.
"""

import itertools
import json
import sys
from collections import defaultdict
from pathlib import PurePath
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

RATES = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5]
N_RESAMPLED = 400
BINS = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]


def main() -> int:
    """Runs the command that the first argument names."""
    if len(sys.argv) == 4 and sys.argv[1] == "fit":
        entry(sys.argv[2], sys.argv[3])
    elif len(sys.argv) == 2 and sys.argv[1] == "reliability":
        people = json.load(sys.stdin)["people"]
        vectors = {name: [np.array(v) / np.linalg.norm(v) for v in photos] for name, photos in people.items()}
        print(json.dumps(reliability(pairs_of(vectors), sorted(vectors))))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


def entry(identities: str, strangers_file: str) -> None:
    """Prints the entry."""
    people = defaultdict(list)
    for photo, vector in embeddings(identities):
        people[PurePath(photo).parent.name].append(vector)
    names, pairs = sorted(people), pairs_of(people)
    strangers = np.array([vector for _, vector in embeddings(strangers_file)])
    dice = np.random.default_rng(1)
    intercept, slope = fit(*split(pairs, names))
    resampled = np.array([fit(*split(pairs, list(dice.choice(names, len(names))))) for _ in range(N_RESAMPLED)])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    genuine, impostor = split(pairs, names)
    print("[models.identity]")
    print(f"intercept = {intercept:.3f}\nslope = {slope:.3f}")
    print(f"intercept_bounds = [{low[0]:.3f}, {high[0]:.3f}]\nslope_bounds = [{low[1]:.3f}, {high[1]:.3f}]")
    print(f"n_people = {len(names)}\nn_genuine_pairs = {len(genuine)}\nn_impostor_pairs = {len(impostor)}")
    n = len(strangers)
    print(f"n_false_match_photos = {n}\nn_false_match_pairs = {n * (n - 1) // 2}")
    print("# Score, rate, and the bounds of the rate.\nfalse_matches = [")
    for score, rate, lower, upper in false_matches(strangers, dice):
        print(f"  [{score:.4f}, {rate:.3g}, {lower:.3g}, {upper:.3g}],")
    print("]")


def pairs_of(people: Dict[str, List[np.ndarray]]) -> Dict[Tuple[str, str], np.ndarray]:
    """The scores of every two people's pairs of photos, and of each one's own."""
    both = itertools.combinations_with_replacement(sorted(people), 2)
    return {(a, b): scores(people[a], people[b], a == b) for a, b in both}


def embeddings(path: str) -> List[Tuple[str, np.ndarray]]:
    """The photo and the unit vector of every answer that has one."""
    found = []
    with open(path) as lines:
        for line in lines:
            answer = json.loads(line)
            for face in answer.get("response", {}).get("faces", [])[:1]:
                if "embedding" in face:
                    vector = np.array(face["embedding"]["values"])
                    found.append((answer["correlationId"], vector / np.linalg.norm(vector)))
    return found


def scores(a: Sequence[np.ndarray], b: Sequence[np.ndarray], same: bool) -> np.ndarray:
    """The cosines of all pairs."""
    table = np.array(a) @ np.array(b).T
    return table[np.triu_indices(len(a), 1)] if same else table.ravel()


def split(pairs: Dict[Tuple[str, str], np.ndarray], chosen: List[str]) -> Tuple[np.ndarray, np.ndarray]:
    """The scores of the same and of different people among the chosen, who may be chosen more than once."""
    genuine = np.concatenate([pairs[name, name] for name in chosen])
    different = [tuple(sorted(pair)) for pair in itertools.combinations(chosen, 2) if pair[0] != pair[1]]
    return genuine, np.concatenate([pairs[a, b] for a, b in different]) if different else np.array([0.5])


def fit(genuine: np.ndarray, impostor: np.ndarray) -> Tuple[float, float]:
    """Intercept and slope of the log odds."""
    x = np.concatenate([genuine, impostor])
    n_genuine, n_impostor = len(genuine), len(impostor)
    target = np.concatenate(
        [np.full(n_genuine, (n_genuine + 1) / (n_genuine + 2)), np.full(n_impostor, 1 / (n_impostor + 2))]
    )
    weight = np.concatenate([np.full(n_genuine, 0.5 / n_genuine), np.full(n_impostor, 0.5 / n_impostor)])
    centre, design = x.mean(), np.stack([np.ones_like(x), x - x.mean()], axis=1)
    beta = np.zeros(2)
    for _ in range(200):
        p = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (weight * (target - p))
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # Damped: the curve is nearly flat where people are told apart without error.
        beta += step * min(1.0, 5.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            break
    return float(beta[0] - beta[1] * centre), float(beta[1])


def reliability(pairs: Dict[Tuple[str, str], np.ndarray], names: List[str]) -> Dict[str, Any]:
    """What is answered for people who were not fitted on, against what is true."""
    answered, truth, weights = [], [], []
    for left_out in itertools.combinations(names, 2):
        intercept, slope = fit(*split(pairs, [name for name in names if name not in left_out]))
        genuine, impostor = split(pairs, list(left_out))
        for values, is_same in ((genuine, 1.0), (impostor, 0.0)):
            answered.append(1 / (1 + np.exp(-(intercept + slope * values))))
            truth.append(np.full(len(values), is_same))
            weights.append(np.full(len(values), 0.5 / max(1, len(values))))
    p, y, w = np.concatenate(answered), np.concatenate(truth), np.concatenate(weights)
    bins = []
    for low, high in zip(BINS, BINS[1:]):
        inside = (p >= low) & ((p < high) | (high == 1.0))
        if inside.any():
            mean, share = np.average(p[inside], weights=w[inside]), np.average(y[inside], weights=w[inside])
            bins.append({"answered": float(mean), "truth": float(share), "n_pairs": int(inside.sum())})
    return {"bins": bins, "brier": float(np.average((p - y) ** 2, weights=w))}


def false_matches(strangers: np.ndarray, dice: np.random.Generator) -> List[Tuple[float, float, float, float]]:
    """Score, rate, and the rate's bounds, the scores rising; the last is above every pair."""
    n = len(strangers)
    rows, columns = np.triu_indices(n, 1)
    cosines = (strangers @ strangers.T)[rows, columns]
    order = np.sort(cosines)[::-1]
    points = []
    for rate in RATES:
        count = max(1, int(rate * len(order)))
        points.append((float(order[count - 1]), count / len(order)))
    edge = float(order[0])
    tail = cosines >= points[0][0]
    rows, columns, cosines = rows[tail], columns[tail], cosines[tail]
    shares = []
    for _ in range(N_RESAMPLED):
        times = np.bincount(dice.integers(0, n, n), minlength=n)
        together = times[rows] * times[columns]
        total = (times.sum() ** 2 - (times**2).sum()) / 2
        shares.append([together[cosines >= score].sum() / total for score, _ in points])
    low, high = np.quantile(np.array(shares), [0.025, 0.975], axis=0)
    table = [(score, rate, lower, upper) for (score, rate), lower, upper in zip(points, low, high)]
    # None of so many independent photos matched: the rule of three, on photos and not on pairs.
    return table + [(edge + 1e-4, 0.0, 0.0, min(table[-1][3], 3 / n))]


if __name__ == "__main__":
    sys.exit(main())
