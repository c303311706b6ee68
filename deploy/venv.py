#!/usr/bin/env python3
"""Prepares a Python that has the packages of the given requirements files, and prints its path.

The virtual environment is kept in the cache folder, not in the tree, and is named after the requirements' digest: a
changed requirement makes another one, an unchanged one costs nothing. A file written last marks it complete, so that
an interrupted run is made again.

A package whose own pins are older than what it runs on goes into a file of its own, given with --no-deps: it is
installed after the others and brings nothing with it. What it imports must then be in the other files.
"""

import argparse
import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

from cache_folder import cache_folder


def main() -> int:
    """Prints the Python's path; 1 with a message when there is none."""
    parser = argparse.ArgumentParser(description="Prepare a cached virtual environment and print its Python.")
    parser.add_argument("requirements", metavar="REQUIREMENTS", nargs="+", type=Path, help="pip requirements files")
    parser.add_argument(
        "--no-deps",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="a requirements file to install last, without what its packages depend on",
    )
    options = parser.parse_args()
    requirements: List[Path] = options.requirements
    without: List[Path] = options.no_deps
    key = hashlib.sha256(f"{platform.python_version()} {sys.executable}".encode())
    for file in requirements + without:
        if not file.is_file():
            print(f"venv: there is no {file}.", file=sys.stderr)
            return 1
        if file in without:
            key.update(b"\n--no-deps\n")
        key.update(file.read_bytes())
    cache = cache_folder()
    target = cache / f"venv-{key.hexdigest()[:16]}"
    if not (target / "complete").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{target.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target / "complete").is_file() and not make(target, requirements, without):
                return 1
    print(target / "bin" / "python")
    return 0


def make(target: Path, requirements: List[Path], without: List[Path]) -> bool:
    """Builds the environment in its place; the file `complete` is written last."""
    print(f"venv: preparing {target} (once)", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    if subprocess.run([sys.executable, "-m", "venv", str(target)], stdout=sys.stderr).returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        print("venv: this Python cannot make virtual environments. Debian: apt install python3-venv", file=sys.stderr)
        return False
    install = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for options, files in (([], requirements), (["--no-deps"], without)):
        named = [argument for file in files for argument in ("--requirement", str(file))]
        if named and subprocess.run(install + options + named, stdout=sys.stderr).returncode != 0:
            print("venv: the packages could not be installed; pip says why above. Run this again.", file=sys.stderr)
            return False
    (target / "complete").touch()
    return True


if __name__ == "__main__":
    sys.exit(main())
