#!/usr/bin/env python3
"""Puts libtorch where the build can use it, and prints that folder.

libtorch comes from the Python wheel of PyTorch: the one distribution that every machine's package index carries.
The wheel is asked of the index that pip is configured for, downloaded so that an interrupted run goes on where it
stopped, checked against the digests below, and reduced to the headers and the five libraries that a CPU build needs.

    LIBTORCH=/opt/libtorch      use that folder, fetch nothing
    LIBTORCH_USE_PYTORCH=1      use the PyTorch that this Python imports, fetch nothing
    VISAGE_CACHE=/var/cache/x   keep it there instead of ~/.cache/visage

Only the path goes to standard output; everything said to people goes to standard error. Python 3.9, no packages.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from cache_folder import cache_folder, locked, print_folder, staged, writing_to
from package_index import CHUNK_BYTES, FetchError, IndexFile, PipSettings, Purpose, digest_of, download, local_file

PURPOSE = Purpose("libtorch", "set LIBTORCH to a libtorch of your own")
VERSION = "2.11.0"
STAMP = "visage-libtorch.json"
# Written beside the libraries: torch-sys links `-ltorch`, which in a CPU build only forwards to libtorch_cpu.
LINKER_SCRIPT = "INPUT(libtorch_cpu.so)\n"


class Library(NamedTuple):
    """A shared library inside a wheel."""

    name: str
    n_bytes: int
    sha256: str


TORCH = IndexFile(
    "torch",
    "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    530_712_279,
    "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
)
CUPTI = IndexFile(
    "nvidia-cuda-cupti",
    "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
    10_715_597,
    "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
)
CUDART = IndexFile(
    "nvidia-cuda-runtime",
    "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    2_243_632,
    "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
)
# libtorch_cpu.so of this wheel names the CUDA runtime and its profiler among the libraries it loads, even where
# there is no GPU; both are small.
LIBRARIES: Dict[IndexFile, Tuple[Library, ...]] = {
    TORCH: (
        Library("libc10.so", 1_498_969, "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640"),
        Library("libtorch_cpu.so", 451_209_129, "2e1034d418c1c881c86f67fc357b8723efc3f22bdb266f06aace8e6ca9c170b3"),
        Library("libgomp.so.1", 254_009, "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890"),
    ),
    CUPTI: (Library("libcupti.so.13", 4_152_208, "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e"),),
    CUDART: (Library("libcudart.so.13", 704_288, "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0"),),
}
HEADERS = "torch/include/"
HEADERS_PROBE = "include/torch/csrc/api/include/torch/torch.h"


def main() -> int:
    """Prints the folder to set as LIBTORCH; 1 with a message when there is none."""
    parser = argparse.ArgumentParser(
        description="Fetch libtorch once and print its folder.",
        epilog="LIBTORCH or LIBTORCH_USE_PYTORCH=1 in the environment is used as it is; nothing is fetched then.",
    )
    parser.add_argument(
        "--find-links", metavar="DIR", action="append", default=[], help="look for the wheels here first"
    )
    parser.add_argument("--keep-wheels", action="store_true", help="do not delete the downloaded wheels")
    options = parser.parse_args()
    return print_folder(PURPOSE, lambda: libtorch(options.find_links, options.keep_wheels))


def libtorch(find_links: List[str], keep_wheels: bool) -> Path:
    """The folder with `include` and `lib`: the machine's own, or the fetched one."""
    own = machines_own()
    if own is not None:
        return own
    cache = cache_folder()
    target = cache / f"libtorch-{VERSION}"
    if is_stamped(target):
        return target
    if (sys.platform, platform.machine()) not in (("linux", "x86_64"), ("linux", "AMD64")):
        raise FetchError(
            f"there is no ready-made library for {sys.platform} on {platform.machine()}. Install PyTorch {VERSION} or "
            f"libtorch {VERSION} for this machine and set LIBTORCH to its folder (the one with include/ and lib/), or "
            "set LIBTORCH_USE_PYTORCH=1 to use the PyTorch of your python3."
        )
    with writing_to(cache, "1.2 GB"), locked(cache / f"libtorch-{VERSION}.lock", PURPOSE.say):
        if not is_stamped(target) and not adopt(target):
            install(cache, target, find_links, keep_wheels)
    return target


def machines_own() -> Optional[Path]:
    """What LIBTORCH or LIBTORCH_USE_PYTORCH names, checked as far as is cheap."""
    named = os.environ.get("LIBTORCH")
    if named:
        folder = Path(named).expanduser().absolute()
        if not (folder / "lib").is_dir():
            raise FetchError(
                f"LIBTORCH is {named}, but that folder has no lib/. Correct it, or unset it to have libtorch fetched."
            )
        return folder
    if os.environ.get("LIBTORCH_USE_PYTORCH", "0") in ("", "0"):
        return None
    python = os.environ.get("PYTHON") or ("python" if os.environ.get("VIRTUAL_ENV") else "python3")
    probe = "import os, torch; print(torch.__version__); print(os.path.dirname(torch.__file__))"
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True)
    if done.returncode != 0:
        raise FetchError(f"LIBTORCH_USE_PYTORCH is set, but {python} cannot import torch:\n{done.stderr.strip()}")
    version, folder_text = done.stdout.split("\n")[:2]
    if version.split("+")[0] != VERSION:
        raise FetchError(f"LIBTORCH_USE_PYTORCH is set, but {python} has torch {version}; this build needs {VERSION}.")
    return Path(folder_text)


# What is already there


def expected_stamp() -> Dict[str, object]:
    """What the stamp of a complete folder says."""
    return {
        "version": VERSION,
        "wheels": {wheel.filename: wheel.sha256 for wheel in LIBRARIES},
        "libraries": {library.name: library.sha256 for library in all_libraries()},
    }


def is_stamped(target: Path) -> bool:
    """Whether `target` was completed by this very list of files. Instant: digests are not computed again."""
    try:
        if json.loads((target / STAMP).read_text()) != expected_stamp():
            return False
    except (OSError, ValueError):
        return False
    return looks_complete(target)


def looks_complete(target: Path) -> bool:
    """Whether every file is there with its size."""
    sizes = {target / "lib" / library.name: library.n_bytes for library in all_libraries()}
    sizes[target / "lib" / "libtorch.so"] = len(LINKER_SCRIPT)
    try:
        return (target / HEADERS_PROBE).is_file() and all(p.stat().st_size == n for p, n in sizes.items())
    except OSError:
        return False


def adopt(target: Path) -> bool:
    """Stamps a folder that was laid out by hand, if its libraries have the right digests."""
    if not looks_complete(target):
        return False
    PURPOSE.say(f"checking the libraries in {target}")
    if any(digest_of(target / "lib" / library.name) != library.sha256 for library in all_libraries()):
        PURPOSE.say("their digests are not the expected ones; fetching them again")
        return False
    write_stamp(target)
    return True


def write_stamp(folder: Path) -> None:
    (folder / STAMP).write_text(json.dumps(expected_stamp(), indent=2) + "\n")


def all_libraries() -> List[Library]:
    return [library for libraries in LIBRARIES.values() for library in libraries]


# Fetching


def install(cache: Path, target: Path, find_links: List[str], keep_wheels: bool) -> None:
    """Fetches the wheels and puts the complete folder in place by one rename."""
    PURPOSE.say(f"libtorch {VERSION} is fetched once, from PyTorch's Python wheel (531 MB), into {target}")
    pip = PipSettings.read(PURPOSE)
    folders = [Path(f).expanduser() for f in find_links + pip.local_folders()]
    downloads = cache / "downloads"
    downloads.mkdir(exist_ok=True)
    fetched: List[Path] = []
    with staged(target) as staging:
        (staging / "lib").mkdir()
        for wheel, libraries in LIBRARIES.items():
            path = local_file(wheel, folders, PURPOSE)
            if path is None:
                path = download(wheel, downloads, pip)
                fetched.append(path)
            extract(path, wheel, libraries, staging)
        (staging / "lib" / "libtorch.so").write_text(LINKER_SCRIPT)
        write_stamp(staging)
    if not keep_wheels:
        for path in fetched:
            path.unlink()
        with contextlib.suppress(OSError):
            downloads.rmdir()
    PURPOSE.say("done")


def extract(path: Path, wheel: IndexFile, libraries: Tuple[Library, ...], into: Path) -> None:
    """Copies the wheel's libraries to `lib`, and PyTorch's headers to `include`."""
    PURPOSE.say(f"unpacking {wheel.filename}")
    with zipfile.ZipFile(path) as archive:
        members = {name.rsplit("/", 1)[-1]: name for name in archive.namelist() if "/lib/" in name}
        for library in libraries:
            if library.name not in members:
                raise FetchError(f"{wheel.filename} holds no {library.name}.")
            copied = into / "lib" / library.name
            with archive.open(members[library.name]) as source, open(copied, "wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
            if digest_of(copied) != library.sha256:
                raise FetchError(f"{library.name} of {wheel.filename} has not the expected digest.")
            copied.chmod(0o755)
        for name in archive.namelist():
            if wheel is TORCH and name.startswith(HEADERS) and not name.endswith("/"):
                header = into / "include" / name[len(HEADERS) :]
                if into not in Path(os.path.normpath(header)).parents:
                    raise FetchError(f"{wheel.filename} holds a path outside its folder: {name}")
                header.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(header, "wb") as sink:
                    shutil.copyfileobj(source, sink)


if __name__ == "__main__":
    sys.exit(main())
