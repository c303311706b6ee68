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
import base64
import configparser
import contextlib
import errno
import fcntl
import glob
import hashlib
import html.parser
import json
import netrc
import os
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

VERSION = "2.11.0"
STAMP = "visage-libtorch.json"
# Written beside the libraries: torch-sys links `-ltorch`, which in a CPU build only forwards to libtorch_cpu.
LINKER_SCRIPT = "INPUT(libtorch_cpu.so)\n"
CHUNK_BYTES = 1 << 20
MAX_FAILURES = 8
TIMEOUT_S = 60


class Wheel(NamedTuple):
    """A file on the package index."""

    project: str
    filename: str
    n_bytes: int
    sha256: str


class Library(NamedTuple):
    """A shared library inside a wheel."""

    name: str
    n_bytes: int
    sha256: str


TORCH = Wheel(
    "torch",
    "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    530_712_279,
    "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
)
CUPTI = Wheel(
    "nvidia-cuda-cupti",
    "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
    10_715_597,
    "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
)
CUDART = Wheel(
    "nvidia-cuda-runtime",
    "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    2_243_632,
    "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
)
# libtorch_cpu.so of this wheel names the CUDA runtime and its profiler among the libraries it loads, even where
# there is no GPU; both are small.
LIBRARIES: Dict[Wheel, Tuple[Library, ...]] = {
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


class FetchError(Exception):
    """A message for the person who ran the build."""


def main() -> int:
    """Prints the folder to set as LIBTORCH; 1 with a message when there is none."""
    parser = argparse.ArgumentParser(
        description="Fetch libtorch once and print its folder.",
        epilog="LIBTORCH or LIBTORCH_USE_PYTORCH=1 in the environment is used as it is; nothing is fetched then.",
    )
    parser.add_argument("--find-links", metavar="DIR", action="append", default=[], help="look for the wheels here first")
    parser.add_argument("--keep-wheels", action="store_true", help="do not delete the downloaded wheels")
    options = parser.parse_args()
    try:
        print(libtorch(options.find_links, options.keep_wheels))
    except FetchError as err:
        print(f"libtorch: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlibtorch: stopped; the next run goes on from here.", file=sys.stderr)
        return 130
    return 0


def libtorch(find_links: List[str], keep_wheels: bool) -> Path:
    """The folder with `include` and `lib`: the machine's own, or the fetched one."""
    own = machines_own()
    if own is not None:
        return own
    cache = Path(os.environ.get("VISAGE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "visage")
    cache = cache.expanduser().absolute()
    target = cache / f"libtorch-{VERSION}"
    if is_stamped(target):
        return target
    if (sys.platform, platform.machine()) not in (("linux", "x86_64"), ("linux", "AMD64")):
        raise FetchError(
            f"there is no ready-made library for {sys.platform} on {platform.machine()}. Install PyTorch {VERSION} or "
            f"libtorch {VERSION} for this machine and set LIBTORCH to its folder (the one with include/ and lib/), or "
            "set LIBTORCH_USE_PYTORCH=1 to use the PyTorch of your python3."
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"libtorch-{VERSION}.lock"):
            if not is_stamped(target) and not adopt(target):
                install(cache, target, find_links, keep_wheels)
    except OSError as err:
        if err.errno == errno.ENOSPC:
            raise FetchError(f"the disk of {cache} is full; about 1.2 GB are needed while fetching.") from err
        raise FetchError(f"cannot write to {cache}: {err}. VISAGE_CACHE names another folder.") from err
    return target


def machines_own() -> Optional[Path]:
    """What LIBTORCH or LIBTORCH_USE_PYTORCH names, checked as far as is cheap."""
    named = os.environ.get("LIBTORCH")
    if named:
        folder = Path(named).expanduser().absolute()
        if not (folder / "lib").is_dir():
            raise FetchError(f"LIBTORCH is {named}, but that folder has no lib/. Correct it, or unset it to have libtorch fetched.")
        return folder
    if os.environ.get("LIBTORCH_USE_PYTORCH", "0") in ("", "0"):
        return None
    python = os.environ.get("PYTHON") or ("python" if os.environ.get("VIRTUAL_ENV") else "python3")
    probe = "import os, torch; print(torch.__version__); print(os.path.dirname(torch.__file__))"
    done = subprocess.run([python, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
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
    say(f"checking the libraries in {target}")
    if any(digest_of(target / "lib" / library.name) != library.sha256 for library in all_libraries()):
        say("their digests are not the expected ones; fetching them again")
        return False
    write_stamp(target)
    return True


def write_stamp(folder: Path) -> None:
    (folder / STAMP).write_text(json.dumps(expected_stamp(), indent=2) + "\n")


def all_libraries() -> List[Library]:
    return [library for libraries in LIBRARIES.values() for library in libraries]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file lock, so that two builds at once fetch once."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build is fetching it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Fetching


def install(cache: Path, target: Path, find_links: List[str], keep_wheels: bool) -> None:
    """Fetches the wheels and puts the complete folder in place by one rename."""
    say(f"libtorch {VERSION} is fetched once, from PyTorch's Python wheel (531 MB), into {target}")
    pip = PipSettings.read()
    folders = [Path(f).expanduser() for f in find_links + pip.local_folders()]
    downloads = cache / "downloads"
    downloads.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"libtorch-{VERSION}.", dir=cache))
    fetched: List[Path] = []
    try:
        (staging / "lib").mkdir()
        for wheel, libraries in LIBRARIES.items():
            path = local_wheel(wheel, folders)
            if path is None:
                path = download(wheel, downloads, pip)
                fetched.append(path)
            extract(path, wheel, libraries, staging)
        (staging / "lib" / "libtorch.so").write_text(LINKER_SCRIPT)
        write_stamp(staging)
        staging.chmod(0o755)
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f"libtorch-{VERSION}.old.", dir=cache))
            target.rename(replaced / "old")
            staging.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if not keep_wheels:
        for path in fetched:
            path.unlink()
        with contextlib.suppress(OSError):
            downloads.rmdir()
    say("done")


def local_wheel(wheel: Wheel, folders: List[Path]) -> Optional[Path]:
    """The wheel among the user's own files, if its digest is right."""
    for folder in folders:
        path = folder / wheel.filename
        if path.is_file():
            say(f"using {path}")
            if digest_of(path) == wheel.sha256:
                return path
            say("its digest is not the expected one; left alone")
    return None


def extract(path: Path, wheel: Wheel, libraries: Tuple[Library, ...], into: Path) -> None:
    """Copies the wheel's libraries to `lib`, and PyTorch's headers to `include`."""
    say(f"unpacking {wheel.filename}")
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


def download(wheel: Wheel, folder: Path, pip: "PipSettings") -> Path:
    """Downloads a wheel, going on from what an earlier run left, and checks its digest."""
    done = folder / wheel.filename
    part = folder / (wheel.filename + ".part")
    if done.is_file() and digest_of(done) == wheel.sha256:
        return done
    free = shutil.disk_usage(folder).free
    if free < 2 * wheel.n_bytes:
        raise FetchError(f"{folder} has {free // 2**20} MiB free; at least {2 * wheel.n_bytes // 2**20} MiB are needed.")
    url = with_retries(f"asking for {wheel.project}", lambda: pip.find(wheel))
    digest = hashlib.sha256()
    if part.is_file() and part.stat().st_size > wheel.n_bytes:
        part.unlink()
    if part.is_file():
        with open(part, "rb") as file:
            for block in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(block)
    n_failures = 0
    bar = Bar(wheel.filename, wheel.n_bytes)
    while True:
        have = part.stat().st_size if part.is_file() else 0
        if have == wheel.n_bytes:
            break
        before = have
        try:
            with pip.open(url, {"Range": f"bytes={have}-"} if have else {}) as answer:
                if have and answer.status != 206:
                    digest, have = hashlib.sha256(), 0
                with open(part, "ab" if have else "wb") as file:
                    bar.start(have)
                    for block in iter(lambda: answer.read(CHUNK_BYTES), b""):
                        if have + len(block) > wheel.n_bytes:
                            raise FetchError(f"{wheel.filename} is longer than it should be; the index serves another file.")
                        file.write(block)
                        digest.update(block)
                        have += len(block)
                        bar.show(have)
            failure = None if have == wheel.n_bytes else "the connection closed early"
        except urllib.error.HTTPError as err:
            if err.code in (401, 403, 404, 407, 410):
                raise FetchError(f"the index refused {wheel.filename}: {err.code} {err.reason}.") from err
            failure = f"{err.code} {err.reason}"
        except (urllib.error.URLError, OSError, http_errors()) as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                raise
            failure = str(getattr(err, "reason", err)) or type(err).__name__
        if failure:
            n_failures = 1 if have > before else n_failures + 1
            if n_failures >= MAX_FAILURES:
                raise FetchError(f"cannot download {wheel.filename}: {failure}. The next run goes on from {have} bytes.")
            bar.pause(f"{failure}; trying again")
            time.sleep(min(30, 2 ** (n_failures - 1)))
    bar.finish()
    if digest.hexdigest() != wheel.sha256:
        part.unlink()
        raise FetchError(f"{wheel.filename} has not the expected digest and was deleted. Run this again; if it happens twice, the index serves another file.")
    part.rename(done)
    return done


def http_errors() -> type:
    import http.client

    return http.client.HTTPException


def with_retries(what: str, call):  # type: ignore[no-untyped-def]
    """Calls until it answers, a few times, waiting longer each time. A refusal is not tried again."""
    for attempt in range(MAX_FAILURES):
        try:
            return call()
        except (urllib.error.URLError, OSError, http_errors()) as err:
            failure = getattr(err, "reason", err)
            if isinstance(err, urllib.error.HTTPError) and err.code in (401, 403, 407):
                raise FetchError(f"{what}: {err.code} {err.reason}.") from err
            say(f"{what}: {failure}; trying again")
            if attempt + 1 < MAX_FAILURES:
                time.sleep(min(30, 2**attempt))
    raise FetchError(f"{what}: {failure}. Is this machine's Python package index reachable?")


# The package index


class PipSettings:
    """The package index as pip is told of it: environment before files, pip's own default last."""

    def __init__(self, settings: Dict[str, str]) -> None:
        self.settings = settings
        self.proxies = {s: settings["proxy"] for s in ("http", "https")} if settings.get("proxy") else None
        context = ssl.create_default_context(cafile=self.certificates())
        handlers: List[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
        if self.proxies:
            handlers.append(urllib.request.ProxyHandler(self.proxies))
        self.opener = urllib.request.build_opener(*handlers)

    @staticmethod
    def read() -> "PipSettings":
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
                say(f"{file} is left out: {err}")
                continue
            for section in ("global", "download"):
                if parser.has_section(section):
                    settings.update({k.replace("_", "-"): v for k, v in parser.items(section)})
        for key, value in os.environ.items():
            if key.startswith("PIP_") and value:
                settings[key[4:].lower().replace("_", "-")] = value
        return PipSettings(settings)

    def certificates(self) -> Optional[str]:
        """The file of certificate authorities; None for the system's."""
        named = self.settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        if named:
            return named
        if ssl.create_default_context().cert_store_stats()["x509_ca"] == 0 and not glob.glob(
            str(Path(ssl.get_default_verify_paths().capath or "/nowhere") / "*.0")
        ):
            with contextlib.suppress(ImportError), bundled_pip():
                from pip._vendor import certifi  # type: ignore[import-not-found]

                if Path(certifi.where()).is_file():
                    return str(certifi.where())
        return None

    def local_folders(self) -> List[str]:
        """The `find-links` that are folders of this machine."""
        links = self.settings.get("find-links", "").split()
        links = [urllib.request.url2pathname(urllib.parse.urlsplit(f).path) if f.startswith("file:") else f for f in links]
        return [f for f in links if "://" not in f]

    def indexes(self) -> List[str]:
        """The indexes to ask, in order."""
        if self.settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            return []
        return [self.settings.get("index-url") or default_index()] + self.settings.get("extra-index-url", "").split()

    def find(self, wheel: Wheel) -> str:
        """The address of the wheel, by the simple repository API (JSON or HTML)."""
        accept = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
        others: List[str] = []
        for index in self.indexes():
            page = f"{index.rstrip('/')}/{wheel.project}/"
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
                if urllib.parse.unquote(parts.path.rsplit("/", 1)[-1]) == wheel.filename:
                    if parts.fragment.startswith("sha256=") and parts.fragment[7:] != wheel.sha256:
                        others.append(url)
                        continue
                    return urllib.parse.urldefrag(url)[0]
        if others:
            raise FetchError(f"the index has {wheel.filename} with another digest than the pinned one; it is not used.")
        raise FetchError(
            f"the configured Python package index has no {wheel.filename}. Put that file in a folder and set "
            "PIP_FIND_LINKS to the folder, or set LIBTORCH to a libtorch of your own."
        )

    def open(self, url: str, headers: Dict[str, str]):  # type: ignore[no-untyped-def]
        """Opens an address with the credentials in it or in ~/.netrc."""
        parts = urllib.parse.urlsplit(url)
        headers = {"User-Agent": "visage-build", **headers}
        host = parts.hostname or ""
        user, secret = parts.username, parts.password
        if user is None:
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                found = netrc.netrc().authenticators(host)
                user, secret = (found[0], found[2]) if found else (None, None)
        if user is not None:
            pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(secret or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        return self.opener.open(urllib.request.Request(bare.geturl(), headers=headers), timeout=TIMEOUT_S)


def restore_credentials(url: str, asked: str) -> str:
    """The answering address with the credentials of the asked one, when it is the same host."""
    ours, theirs = urllib.parse.urlsplit(asked), urllib.parse.urlsplit(url)
    return theirs._replace(netloc=ours.netloc).geturl() if ours.hostname == theirs.hostname else url


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


def default_index() -> str:
    """The index that pip asks when nobody told it otherwise."""
    with bundled_pip():
        try:
            from pip._internal.models.index import PyPI  # type: ignore[import-not-found]

            return str(PyPI.simple_url)
        except ImportError:
            raise FetchError(
                f"{sys.executable} has no pip that could tell where the Python package index is. Install pip (Debian: "
                "apt install python3-venv), or set PIP_INDEX_URL, or set LIBTORCH to a libtorch of your own."
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


# Saying what happens


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
        elif have * 10 // self.n_bytes < self.next_tenth:
            return
        self.last_shown, self.next_tenth = now, have * 10 // self.n_bytes + 1
        speed = (have - self.from_bytes) / max(now - self.from_time, 1e-3)
        left = int((self.n_bytes - have) / max(speed, 1.0))
        share = have / self.n_bytes
        text = f"{have / 1e6:.0f}/{self.n_bytes / 1e6:.0f} MB  {speed / 1e6:.1f} MB/s  {left // 60}:{left % 60:02d} left"
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


def say(text: str) -> None:
    """One line for people."""
    print(f"libtorch: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
