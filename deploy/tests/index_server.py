"""A package index on this machine with faults to order, for the tests of what is fetched."""

import hashlib
import http.server
import io
import json
import os
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Type
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import package_index  # noqa: E402


class Index(http.server.BaseHTTPRequestHandler):
    """An index of `files`, by their names; each has the project and the digest of `listed`."""

    files: Dict[str, bytes] = {}
    listed: Dict[str, package_index.IndexFile] = {}
    as_html = False
    digest: Optional[str] = None
    """Listed instead of every file's own."""
    drop_after: List[int] = []
    """Bytes after which the next answers break off."""
    ranges: List[Optional[str]] = []
    """What was asked for, one entry for each request of a file."""
    obey_range = True
    secrets: List[Optional[str]] = []
    """The credentials of every request."""
    send_files_to: Optional[str] = None
    """Another server, to which requests of files are sent on."""

    def do_GET(self) -> None:
        self.secrets.append(self.headers.get("Authorization"))
        _, kind, name = self.path.split("/", 2)
        project = name.rstrip("/")
        if kind == "simple" and any(file.project == project for file in self.listed.values()):
            self.answer_project(project)
        elif kind == "files" and self.send_files_to:
            self.send_response(302)
            self.send_header("Location", f"{self.send_files_to}/files/{name}")
            self.end_headers()
        elif kind == "files" and name in self.files:
            self.answer_file(self.files[name])
        else:
            self.send_error(404)

    def answer_project(self, project: str) -> None:
        files = [(f.filename, self.digest or f.sha256) for f in self.listed.values() if f.project == project]
        if self.as_html:
            page = "".join(f'<a href="/files/{name}#sha256={digest}">x</a>' for name, digest in files)
            kind = "text/html"
        else:
            rows = [{"filename": n, "url": f"../../files/{n}", "hashes": {"sha256": digest}} for n, digest in files]
            page, kind = json.dumps({"files": rows}), "application/vnd.pypi.simple.v1+json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(page.encode())

    def answer_file(self, body: bytes) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.obey_range else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + self.drop_after.pop(0) if self.drop_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


class IndexTest(unittest.TestCase):
    """A test with an index to ask, a cache folder of its own, and nothing else of this machine's settings."""

    def start(self, files: Dict[package_index.IndexFile, bytes]) -> None:
        """Serves the files; called by setUp."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache = Path(folder.name)

        self.handler, self.server = self.serve(files)
        environment = {
            "VISAGE_CACHE": folder.name,
            "PIP_INDEX_URL": f"http://127.0.0.1:{self.server.server_port}/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "HOME": folder.name,
            "no_proxy": "127.0.0.1",
        }
        self.said = io.StringIO()
        self.patch(mock.patch.dict(os.environ, environment, clear=True))
        self.patch(mock.patch.object(package_index, "FIRST_WAIT_S", 0.0))
        self.patch(mock.patch.object(sys, "stderr", self.said))

    def serve(
        self, files: Dict[package_index.IndexFile, bytes]
    ) -> Tuple[Type[Index], http.server.ThreadingHTTPServer]:
        """A server of the files on a port of its own, until the test's end."""

        class Handler(Index):
            drop_after: List[int] = []
            ranges: List[Optional[str]] = []
            secrets: List[Optional[str]] = []

        Handler.files = {file.filename: body for file, body in files.items()}
        Handler.listed = {file.filename: file for file in files}
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return Handler, server

    def patch(self, patch: "mock._patch[object] | mock._patch_dict") -> None:
        """Holds for the rest of the test."""
        patch.start()
        self.addCleanup(patch.stop)


def index_file(project: str, filename: str, body: bytes) -> package_index.IndexFile:
    """The pinned name of a file with this content."""
    return package_index.IndexFile(project, filename, len(body), hashlib.sha256(body).hexdigest())
