"""Finds and downloads files of the Python package index that pip is configured for.

Owns: reading pip's settings, the simple repository API, a download that goes on where an earlier one stopped, and the
progress bar. Knows nothing of what a file is for: its caller gives the words for people. No index is named here:
without a setting, pip's own default is taken from pip. Python 3.9, no packages.
"""

import base64
import configparser
import contextlib
import errno
import glob
import hashlib
import html.parser
import http.client
import json
import netrc
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

CHUNK_BYTES = 1 << 20
MAX_FAILURES = 8
TIMEOUT_S = 60
FIRST_WAIT_S = 1.0
# Below this a log needs no progress.
QUIET_BYTES = 50_000_000
NETWORK_ERRORS = (urllib.error.URLError, OSError, http.client.HTTPException)


class Purpose(NamedTuple):
    """What is fetched, in the words of messages to people."""

    name: str
    """Stands before every line, such as `libtorch`."""
    instead: str
    """What one can do without an index, such as `set LIBTORCH to a libtorch of your own`."""

    def say(self, text: str) -> None:
        """One line for people."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


class IndexFile(NamedTuple):
    """A file on the package index, a wheel or a source archive."""

    project: str
    filename: str
    n_bytes: int
    sha256: str


class FetchError(Exception):
    """A message for the person who ran the build."""


def local_file(file: IndexFile, folders: List[Path], purpose: Purpose) -> Optional[Path]:
    """The file among the user's own, if its digest is right."""
    for folder in folders:
        path = folder / file.filename
        if path.is_file():
            purpose.say(f"using {path}")
            if digest_of(path) == file.sha256:
                return path
            purpose.say("its digest is not the expected one; left alone")
    return None


def download(file: IndexFile, folder: Path, pip: "PipSettings") -> Path:
    """Downloads a file, going on from what an earlier run left, and checks its digest."""
    done = folder / file.filename
    part = folder / (file.filename + ".part")
    if done.is_file() and digest_of(done) == file.sha256:
        return done
    free = shutil.disk_usage(folder).free
    if free < 2 * file.n_bytes:
        raise FetchError(
            f"{folder} has {free // 2**20} MiB free; at least {2 * file.n_bytes // 2**20} MiB are needed."
        )
    url = with_retries(f"asking for {file.project}", lambda: pip.find(file), pip.purpose)
    digest = hashlib.sha256()
    if part.is_file() and part.stat().st_size > file.n_bytes:
        part.unlink()
    if part.is_file():
        with open(part, "rb") as source:
            for block in iter(lambda: source.read(CHUNK_BYTES), b""):
                digest.update(block)
    n_failures = 0
    bar = Bar(file.filename, file.n_bytes)
    while True:
        have = part.stat().st_size if part.is_file() else 0
        if have == file.n_bytes:
            break
        before = have
        try:
            with pip.open(url, {"Range": f"bytes={have}-"} if have else {}) as answer:
                if have and answer.status != 206:
                    digest, have = hashlib.sha256(), 0
                with open(part, "ab" if have else "wb") as sink:
                    bar.start(have)
                    for block in iter(lambda: answer.read(CHUNK_BYTES), b""):
                        if have + len(block) > file.n_bytes:
                            raise FetchError(
                                f"{file.filename} is longer than it should be; the index serves another file."
                            )
                        sink.write(block)
                        digest.update(block)
                        have += len(block)
                        bar.show(have)
            failure = None if have == file.n_bytes else "the connection closed early"
        except urllib.error.HTTPError as err:
            if err.code in (401, 403, 404, 407, 410):
                raise FetchError(f"the index refused {file.filename}: {err.code} {err.reason}.") from err
            failure = f"{err.code} {err.reason}"
        except NETWORK_ERRORS as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                raise
            failure = str(getattr(err, "reason", err)) or type(err).__name__
        if failure:
            n_failures = 1 if have > before else n_failures + 1
            if n_failures >= MAX_FAILURES:
                raise FetchError(
                    f"cannot download {file.filename}: {failure}. The next run goes on from {have} bytes."
                )
            bar.pause(f"{failure}; trying again")
            time.sleep(min(30.0, FIRST_WAIT_S * 2 ** (n_failures - 1)))
    bar.finish()
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise FetchError(
            f"{file.filename} has not the expected digest and was deleted. Run this again; if it happens twice, "
            "the index serves another file."
        )
    part.rename(done)
    return done


def with_retries(what: str, call: Callable[[], str], purpose: Purpose) -> str:
    """Calls until it answers, a few times, waiting longer each time. A refusal is not tried again."""
    for attempt in range(MAX_FAILURES):
        try:
            return call()
        except NETWORK_ERRORS as err:
            failure = getattr(err, "reason", err)
            if isinstance(err, urllib.error.HTTPError) and err.code in (401, 403, 407):
                raise FetchError(f"{what}: {err.code} {err.reason}.") from err
            purpose.say(f"{what}: {failure}; trying again")
            if attempt + 1 < MAX_FAILURES:
                time.sleep(min(30.0, FIRST_WAIT_S * 2**attempt))
    raise FetchError(f"{what}: {failure}. Is this machine's Python package index reachable?")


class PipSettings:
    """The package index as pip is told of it: environment before files, pip's own default last."""

    def __init__(self, settings: Dict[str, str], purpose: Purpose) -> None:
        self.settings = settings
        self.purpose = purpose
        self.proxies = {s: settings["proxy"] for s in ("http", "https")} if settings.get("proxy") else None
        context = ssl.create_default_context(cafile=self.certificates())
        handlers: List[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
        if self.proxies:
            handlers.append(urllib.request.ProxyHandler(self.proxies))
        self.opener = urllib.request.build_opener(*handlers)

    @staticmethod
    def read(purpose: Purpose) -> "PipSettings":
        """From pip's configuration files and PIP_ variables."""
        config_home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        files = [Path(f) / "pip" / "pip.conf" for f in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
        files += [Path("/etc/pip.conf"), Path("~/.pip/pip.conf").expanduser(), config_home / "pip" / "pip.conf"]
        files += [Path(sys.prefix) / "pip.conf"]
        if os.environ.get("PIP_CONFIG_FILE"):
            files += [Path(os.environ["PIP_CONFIG_FILE"])]
        settings: Dict[str, str] = {}
        for file in files:
            parser = configparser.RawConfigParser()
            try:
                parser.read(file)
            except configparser.Error as err:
                purpose.say(f"{file} is left out: {err}")
                continue
            for section in ("global", "download"):
                if parser.has_section(section):
                    settings.update({k.replace("_", "-"): v for k, v in parser.items(section)})
        for key, value in os.environ.items():
            if key.startswith("PIP_") and value:
                settings[key[4:].lower().replace("_", "-")] = value
        return PipSettings(settings, purpose)

    def certificates(self) -> Optional[str]:
        """The file of certificate authorities; None for the system's."""
        named = self.settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        if named:
            return named
        if ssl.create_default_context().cert_store_stats()["x509_ca"] == 0 and not glob.glob(
            str(Path(ssl.get_default_verify_paths().capath or "/nowhere") / "*.0")
        ):
            with contextlib.suppress(ImportError), bundled_pip():
                from pip._vendor import certifi

                if Path(certifi.where()).is_file():
                    return str(certifi.where())
        return None

    def local_folders(self) -> List[str]:
        """The `find-links` that are folders of this machine."""
        links = self.settings.get("find-links", "").split()
        links = [
            urllib.request.url2pathname(urllib.parse.urlsplit(f).path) if f.startswith("file:") else f for f in links
        ]
        return [f for f in links if "://" not in f]

    def indexes(self) -> List[str]:
        """The indexes to ask, in order."""
        if self.settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            return []
        first = self.settings.get("index-url") or default_index(self.purpose)
        return [first, *self.settings.get("extra-index-url", "").split()]

    def find(self, file: IndexFile) -> str:
        """The address of the file, by the simple repository API (JSON or HTML)."""
        accept = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
        others: List[str] = []
        for index in self.indexes():
            page = f"{index.rstrip('/')}/{file.project}/"
            try:
                with self.open(page, {"Accept": accept}) as answer:
                    kind, base, body = answer.headers.get_content_type(), answer.geturl(), answer.read().decode()
            except urllib.error.HTTPError as err:
                if err.code == 404:
                    continue
                raise
            base = restore_credentials(base, page)
            for url in links_json(body) if kind.endswith("json") else links_html(body):
                url = urllib.parse.urljoin(base, url)
                parts = urllib.parse.urlsplit(url)
                if urllib.parse.unquote(parts.path.rsplit("/", 1)[-1]) == file.filename:
                    if parts.fragment.startswith("sha256=") and parts.fragment[7:] != file.sha256:
                        others.append(url)
                        continue
                    return urllib.parse.urldefrag(url)[0]
        if others:
            raise FetchError(f"the index has {file.filename} with another digest than the pinned one; it is not used.")
        raise FetchError(
            f"the configured Python package index has no {file.filename}. Put that file in a folder and set "
            f"PIP_FIND_LINKS to the folder, or {self.purpose.instead}."
        )

    def open(self, url: str, headers: Dict[str, str]) -> "http.client.HTTPResponse":
        """Opens an address with the credentials in it or in ~/.netrc."""
        parts = urllib.parse.urlsplit(url)
        headers = {"User-Agent": "visage-build", **headers}
        host = parts.hostname or ""
        user, secret = parts.username, parts.password
        if user is None:
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                found = netrc.netrc().authenticators(host)
                user, secret = (found[0], found[2]) if found else (None, None)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        request = urllib.request.Request(bare.geturl(), headers=headers)
        if user is not None:
            pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(secret or '')}"
            # For this host: one that it sends us on to must not see it.
            request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
        answer: http.client.HTTPResponse = self.opener.open(request, timeout=TIMEOUT_S)
        return answer


def restore_credentials(url: str, asked: str) -> str:
    """The answering address with the credentials of the asked one, when it is the same server."""
    ours, theirs = urllib.parse.urlsplit(asked), urllib.parse.urlsplit(url)
    same = (ours.scheme, ours.hostname, ours.port) == (theirs.scheme, theirs.hostname, theirs.port)
    return theirs._replace(netloc=ours.netloc).geturl() if same else url


def links_json(body: str) -> List[str]:
    """The files of a JSON project page, each with its digest as the fragment."""
    found = []
    for file in json.loads(body).get("files", []):
        digest = file.get("hashes", {}).get("sha256")
        found.append(urllib.parse.urldefrag(file["url"])[0] + (f"#sha256={digest}" if digest else ""))
    return found


def links_html(body: str) -> List[str]:
    """The links of an HTML project page."""
    found: List[str] = []

    class Anchors(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
            if tag == "a":
                found.extend(value for key, value in attrs if key == "href" and value)

    Anchors().feed(body)
    return found


def default_index(purpose: Purpose) -> str:
    """The index that pip asks when nobody told it otherwise."""
    with bundled_pip():
        try:
            from pip._internal.models.index import PyPI

            return str(PyPI.simple_url)
        except ImportError:
            raise FetchError(
                f"{sys.executable} has no pip that could tell where the Python package index is. Install pip (Debian: "
                f"apt install python3-venv), or set PIP_INDEX_URL, or {purpose.instead}."
            ) from None


@contextlib.contextmanager
def bundled_pip() -> Iterator[None]:
    """Makes pip importable from the wheel that `python3 -m venv` would install, where it is not installed."""
    wheels = glob.glob("/usr/share/python-wheels/pip-*.whl") + glob.glob("/usr/share/python3*/**/pip-*.whl")
    with contextlib.suppress(ImportError):
        import ensurepip

        wheels += glob.glob(str(Path(ensurepip.__file__).parent / "_bundled" / "pip-*.whl"))
    before = list(sys.path)
    sys.path += wheels
    try:
        yield
    finally:
        sys.path[:] = before


class Bar:
    """A progress line with speed and remaining time: redrawn on a terminal, every tenth elsewhere."""

    def __init__(self, what: str, n_bytes: int) -> None:
        self.what, self.n_bytes = what.split("-")[0], n_bytes
        self.terminal = sys.stderr.isatty()
        self.start(0)
        self.last_shown = 0.0

    def start(self, have: int) -> None:
        """Measures the speed from here."""
        self.from_bytes, self.from_time, self.next_tenth = have, time.monotonic(), have * 10 // self.n_bytes + 1

    def show(self, have: int) -> None:
        """Draws, if it is time to."""
        now = time.monotonic()
        if self.terminal:
            if now - self.last_shown < 0.2 and have < self.n_bytes:
                return
        elif have * 10 // self.n_bytes < self.next_tenth or self.n_bytes < QUIET_BYTES:
            return
        self.last_shown, self.next_tenth = now, have * 10 // self.n_bytes + 1
        speed = (have - self.from_bytes) / max(now - self.from_time, 1e-3)
        left = int((self.n_bytes - have) / max(speed, 1.0))
        share = have / self.n_bytes
        text = (
            f"{have / 1e6:.0f}/{self.n_bytes / 1e6:.0f} MB  {speed / 1e6:.1f} MB/s  {left // 60}:{left % 60:02d} left"
        )
        if self.terminal:
            width = 30
            blocks = "#" * int(share * width)
            print(f"\r  {self.what} [{blocks:<{width}}] {share:4.0%}  {text}   ", end="", file=sys.stderr, flush=True)
        else:
            print(f"  {self.what} {share:4.0%}  {text}", file=sys.stderr, flush=True)

    def pause(self, why: str) -> None:
        """Says why nothing moves."""
        print(f"{chr(10) if self.terminal else ''}  {self.what}: {why}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Ends the line."""
        if self.terminal:
            print(file=sys.stderr)


def digest_of(path: Path) -> str:
    """SHA-256 in hex; empty when the file cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
