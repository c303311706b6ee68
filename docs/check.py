#!/usr/bin/env python3
"""Checks the papers against the tree, and gives their commands to a test.

    check.py                    links lead somewhere, SUMMARY.md names every page, every RPC and every error reason of the
                                contract is described, with its code
    check.py --commands FILE    prints the blocks marked ```sh run of a page, in order, as one script

Python 3.9, no packages.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Optional

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "proto" / "visage" / "v1"
API_PAGES = ROOT / "docs" / "api"


def main() -> int:
    """1 when something does not hold, each on a line of its own."""
    parser = argparse.ArgumentParser(description="Check the papers against the tree.")
    parser.add_argument("--commands", metavar="FILE", type=Path, help="print the page's runnable blocks instead")
    page: Optional[Path] = parser.parse_args().commands
    if page is not None:
        print("set -euo pipefail")
        print("\n".join(runnable(page.read_text())))
        return 0
    wrong = [*links(), *summary(), *rpcs(), *reasons()]
    for line in wrong:
        print(f"docs: {line}", file=sys.stderr)
    return 1 if wrong else 0


def pages() -> List[Path]:
    """Every page of the repository's own."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "clients").glob("*/*.md")])


def runnable(text: str) -> List[str]:
    """The blocks that are marked to be run."""
    return re.findall(r"^```sh run\n(.*?)^```$", text, flags=re.M | re.S)


def links() -> Iterator[str]:
    """Relative links whose file, or whose heading, is not there."""
    for page in pages():
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            path, _, heading = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield f"{page.relative_to(ROOT)} links to {target}, which is not there"
            elif heading and heading not in headings(file):
                yield f"{page.relative_to(ROOT)} links to {target}, which has no such heading"


def headings(page: Path) -> List[str]:
    """The anchors of a page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found]


def summary() -> Iterator[str]:
    """Pages of the book that its contents do not name."""
    book = ROOT / "docs"
    named = {(book / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", (book / "SUMMARY.md").read_text())}
    for page in sorted(book.rglob("*.md")):
        if page.name != "SUMMARY.md" and page.resolve() not in named:
            yield f"docs/SUMMARY.md does not name {page.relative_to(book)}"


def rpcs() -> Iterator[str]:
    """Methods of the contract that no page of the API describes."""
    described = "\n".join(page.read_text() for page in API_PAGES.glob("*.md"))
    for proto in sorted([*PROTOS.glob("*.proto"), ROOT / "proto" / "google" / "longrunning" / "operations.proto"]):
        for method in re.findall(r"^\s*rpc (\w+)\(", proto.read_text(), flags=re.M):
            if not re.search(rf"\b{method}\b", described):
                yield f"docs/api does not describe {method} of {proto.relative_to(ROOT)}"


def reasons() -> Iterator[str]:
    """Differences between errors.proto and the table of errors, in reasons or in codes."""
    stated: Dict[str, str] = {}
    code = ""
    for line in (PROTOS / "errors.proto").read_text().splitlines():
        comment = re.match(r"\s*// ([A-Z_]+)(?: and ([A-Z_]+))?[:,.]", line)
        value = re.match(r"\s*ERROR_REASON_(\w+) = [1-9]", line)
        if comment:
            code = comment.group(1)
        elif value:
            # A comment that names two codes is of two reasons that are called like their codes.
            stated[value.group(1)] = value.group(1) if value.group(1) == "PERMISSION_DENIED" else code
    table: Dict[str, str] = {}
    code = ""
    for row in re.findall(r"^\|(.+)\|$", (API_PAGES / "errors.md").read_text(), flags=re.M):
        cells = [cell.strip().strip("`") for cell in row.split("|")]
        code = cells[0] or code
        if re.fullmatch(r"[A-Z_]+", cells[1]):
            table[cells[1]] = code
    for reason in sorted(stated.keys() | table.keys()):
        if stated.get(reason) != table.get(reason):
            yield f"docs/api/errors.md says {table.get(reason)} for {reason}, errors.proto {stated.get(reason)}"


if __name__ == "__main__":
    sys.exit(main())
