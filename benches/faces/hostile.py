"""Sends mutated pictures to a running server, and says what became of them.

Usage: python hostile.py VISAGE SERVER PID [N]

VISAGE is the program, SERVER the address of a running server and PID its process, whose memory is watched; N pictures
(5,000 without it) are made of the seeds in fuzz/ and the portrait: bits flipped, cut short, spliced, sizes in headers
made huge, one format's head on another's body. Every one must get an answer or an error with a reason, and the server
must live on in bounded memory. Standard library only.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """1 when a picture got no typed answer or the server is gone."""
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    visage, server, pid = sys.argv[1:4]
    n = int(sys.argv[4]) if len(sys.argv) > 4 else 5000
    seeds = [path.read_bytes() for path in sorted((ROOT / "fuzz" / "seeds").glob("*/*")) if path.parent.name in
             ("jpeg", "png", "webp")] + [(ROOT / "tests" / "fixtures" / "portrait.jpg").read_bytes()]  # fmt: skip
    dice, before, peak = random.Random(5), resident_mb(pid), 0.0
    outcomes: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, n, 250):
            files = []
            for i in range(start, min(n, start + 250)):
                files.append(Path(folder) / f"{i}.bin")
                files[-1].write_bytes(mutated(seeds, dice))
            command = [visage, "predict", "--server", server, "--json", *map(str, files)]
            done = subprocess.run(command, capture_output=True, text=True)
            for line in done.stdout.splitlines():
                outcomes[outcome(json.loads(line))] += 1
            peak = max(peak, resident_mb(pid))
            for file in files:
                file.unlink()
    for what, count in outcomes.most_common():
        print(f"{count:6} {what}")
    answered = sum(outcomes.values())
    print(f"{answered} of {n} answered; the server's memory {before:.0f} MB before, {peak:.0f} MB at most")
    return 0 if answered == n and "no reason" not in outcomes and resident_mb(pid) > 0 else 1


def outcome(answer: dict) -> str:
    """What a picture got."""
    if "response" in answer:
        reasons = answer["response"].get("abstentionReasons", [])
        return "answered" if not reasons else "abstained: " + ", ".join(reasons)
    reasons = [detail["reason"] for detail in answer.get("error", {}).get("details", []) if "reason" in detail]
    return reasons[0] if reasons else "no reason"


def mutated(seeds: List[bytes], dice: random.Random) -> bytes:
    """A seed, spoilt."""
    picture = bytearray(dice.choice(seeds))
    kind = dice.randrange(6)
    if kind == 0:
        for _ in range(dice.randrange(1, 20)):
            picture[dice.randrange(len(picture))] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del picture[dice.randrange(len(picture)) :]
    elif kind == 2:
        other = dice.choice(seeds)
        picture[dice.randrange(len(picture)) :] = other[dice.randrange(len(other)) :]
    elif kind == 3:
        # Sizes stand early in every header.
        at = dice.randrange(min(len(picture), 200))
        picture[at : at + 4] = b"\xff\xff\xff\xf0"
    elif kind == 4:
        other = dice.choice(seeds)
        picture = bytearray(other[:16]) + picture[16:]
    else:
        at, length = dice.randrange(len(picture)), dice.randrange(1, 2000)
        picture[at:at] = bytes(dice.randrange(256) for _ in range(length))
    return bytes(picture)


def resident_mb(pid: str) -> float:
    """Resident memory; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


if __name__ == "__main__":
    sys.exit(main())
