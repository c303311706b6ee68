"""The fetching of libtorch against a small package index on this machine: what a first build must survive."""

import hashlib
import io
import os
import platform
import sys
import unittest
import zipfile
from pathlib import Path
from typing import Dict
from unittest import mock

from index_server import IndexTest, index_file

import fetch_libtorch
import package_index


def wheel_bytes(members: Dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


CONTENT = {"libc10.so": b"c10" * 1000, "libtorch_cpu.so": os.urandom(400_000), "libgomp.so.1": b"gomp"}
MEMBERS = {f"torch/lib/{name}": content for name, content in CONTENT.items()}
MEMBERS["torch/include/torch/csrc/api/include/torch/torch.h"] = b"#pragma once\n"
MEMBERS["torch/nn/module.py"] = b"not needed"
WHEEL_BYTES = wheel_bytes(MEMBERS)
WHEEL = index_file("torch", "torch-9-py3-none-any.whl", WHEEL_BYTES)
LIBRARIES = tuple(fetch_libtorch.Library(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in CONTENT.items())


class FetchTest(IndexTest):
    def setUp(self) -> None:
        self.start({WHEEL: WHEEL_BYTES})
        self.patch(mock.patch.object(fetch_libtorch, "LIBRARIES", {WHEEL: LIBRARIES}))
        self.patch(mock.patch.object(fetch_libtorch, "TORCH", WHEEL))
        self.patch(mock.patch.object(platform, "machine", lambda: "x86_64"))

    def fetch(self) -> Path:
        return fetch_libtorch.libtorch([], keep_wheels=False)

    def assert_complete(self, folder: Path) -> None:
        self.assertEqual({p.name for p in (folder / "lib").iterdir()}, {*CONTENT, "libtorch.so"})
        self.assertEqual((folder / "lib" / "libtorch_cpu.so").read_bytes(), CONTENT["libtorch_cpu.so"])
        self.assertTrue((folder / fetch_libtorch.HEADERS_PROBE).is_file())
        self.assertEqual((folder / "lib" / "libtorch.so").read_text(), "INPUT(libtorch_cpu.so)\n")

    def test_fetches_once_and_leaves_only_the_folder(self) -> None:
        self.assert_complete(self.fetch())
        self.server.shutdown()
        self.assert_complete(self.fetch())
        self.assertEqual(len(self.handler.ranges), 1)
        left = {p.name for p in self.cache.iterdir() if p.suffix != ".lock"}
        self.assertEqual(left, {"libtorch-2.11.0"})

    def test_reads_an_html_index(self) -> None:
        self.handler.as_html = True
        self.assert_complete(self.fetch())

    def test_goes_on_after_a_dropped_connection(self) -> None:
        self.handler.drop_after = [100_000, 0, 50_000]
        self.assert_complete(self.fetch())
        self.assertEqual(self.handler.ranges, [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"])

    def test_goes_on_where_an_earlier_run_stopped(self) -> None:
        (self.cache / "downloads").mkdir()
        (self.cache / "downloads" / f"{WHEEL.filename}.part").write_bytes(WHEEL_BYTES[:70_000])
        self.assert_complete(self.fetch())
        self.assertEqual(self.handler.ranges, ["bytes=70000-"])

    def test_starts_over_where_ranges_are_ignored(self) -> None:
        self.handler.obey_range = False
        self.handler.drop_after = [100_000]
        self.assert_complete(self.fetch())

    def test_gives_up_with_a_message(self) -> None:
        self.handler.drop_after = [100_000] + [0] * 50
        with self.assertRaisesRegex(package_index.FetchError, "goes on from"):
            self.fetch()

    def test_refuses_a_file_of_another_digest(self) -> None:
        self.handler.files = {WHEEL.filename: WHEEL_BYTES[:-1] + b"?"}
        with self.assertRaisesRegex(package_index.FetchError, "digest"):
            self.fetch()
        self.assertFalse((self.cache / "libtorch-2.11.0").exists())
        self.assertEqual(list((self.cache / "downloads").iterdir()), [])

    def test_refuses_an_index_that_lists_another_digest(self) -> None:
        self.handler.digest = "0" * 64
        with self.assertRaisesRegex(package_index.FetchError, "another digest"):
            self.fetch()
        self.assertEqual(self.handler.ranges, [])

    def test_a_missing_wheel_says_what_to_do(self) -> None:
        os.environ["PIP_INDEX_URL"] += "/elsewhere"
        with self.assertRaisesRegex(package_index.FetchError, "PIP_FIND_LINKS.*LIBTORCH"):
            self.fetch()

    def test_takes_a_wheel_from_a_folder(self) -> None:
        wheels = self.cache / "wheels"
        wheels.mkdir()
        (wheels / WHEEL.filename).write_bytes(WHEEL_BYTES)
        os.environ.update(PIP_FIND_LINKS=str(wheels), PIP_NO_INDEX="1")
        self.assert_complete(self.fetch())
        self.assertTrue((wheels / WHEEL.filename).is_file(), "the user's own wheel stays")
        self.assertEqual(self.handler.ranges, [])

    def test_adopts_a_folder_made_by_hand_and_mends_a_damaged_one(self) -> None:
        folder = self.fetch()
        stamp = folder / fetch_libtorch.STAMP
        stamp.unlink()
        self.assert_complete(self.fetch())
        self.assertTrue(stamp.is_file())
        self.assertEqual(len(self.handler.ranges), 1)
        stamp.unlink()
        (folder / "lib" / "libc10.so").write_bytes(b"x" * len(CONTENT["libc10.so"]))
        self.assert_complete(self.fetch())
        self.assertEqual((folder / "lib" / "libc10.so").read_bytes(), CONTENT["libc10.so"])
        (folder / "lib" / "libgomp.so.1").unlink()
        self.assert_complete(self.fetch())

    def test_honours_a_libtorch_of_the_machine(self) -> None:
        own = self.cache / "own"
        (own / "lib").mkdir(parents=True)
        os.environ["LIBTORCH"] = str(own)
        self.assertEqual(self.fetch(), own)
        os.environ["LIBTORCH"] = str(self.cache / "nowhere")
        with self.assertRaisesRegex(package_index.FetchError, "LIBTORCH"):
            self.fetch()
        self.assertEqual(self.handler.ranges, [])

    def test_honours_the_pytorch_of_a_python(self) -> None:
        package = self.cache / "site" / "torch"
        (package / "lib").mkdir(parents=True)
        (package / "__init__.py").write_text("__version__ = '2.11.0+cu130'\n")
        os.environ.update(LIBTORCH_USE_PYTORCH="1", PYTHON=sys.executable, PYTHONPATH=str(package.parent))
        self.assertEqual(self.fetch(), package)
        (package / "__init__.py").write_text("__version__ = '2.9.1'\n")
        with self.assertRaisesRegex(package_index.FetchError, "2.9.1; this build needs 2.11.0"):
            self.fetch()
        self.assertEqual(self.handler.ranges, [])

    def test_another_architecture_is_told_to_set_libtorch(self) -> None:
        with mock.patch.object(platform, "machine", lambda: "riscv64"):
            with self.assertRaisesRegex(package_index.FetchError, "riscv64.*LIBTORCH"):
                self.fetch()

    def test_reads_the_index_from_pips_files(self) -> None:
        conf = self.cache / ".config" / "pip" / "pip.conf"
        conf.parent.mkdir(parents=True)
        conf.write_text(f"[global]\nindex-url = {os.environ.pop('PIP_INDEX_URL')}\n")
        self.assert_complete(self.fetch())

    def test_only_the_index_sees_its_credentials(self) -> None:
        elsewhere, other = self.serve({WHEEL: WHEEL_BYTES})
        self.handler.send_files_to = f"http://127.0.0.1:{other.server_port}"
        os.environ["PIP_INDEX_URL"] = f"http://user:secret@127.0.0.1:{self.server.server_port}/simple"
        self.assert_complete(self.fetch())
        self.assertEqual(set(self.handler.secrets), {"Basic dXNlcjpzZWNyZXQ="})
        self.assertEqual(elsewhere.secrets, [None])


if __name__ == "__main__":
    unittest.main()
