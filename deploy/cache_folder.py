"""The folder where fetched things are kept, and how a complete one is put there.

Owns: where the cache is, the lock that makes two builds at once fetch once, the one rename that shows a new folder only
when it is complete, and how a program prints it. Knows nothing of what is kept. Python 3.9, no packages.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Callable, Iterator

from package_index import FetchError, Purpose


def print_folder(purpose: Purpose, fetched: Callable[[], Path]) -> int:
    """Prints the folder that `fetched` gives, for a program's exit status; 1 with a message when there is none."""
    try:
        print(fetched())
    except FetchError as err:
        purpose.say(str(err))
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        purpose.say("stopped; the next run goes on from here.")
        return 130
    return 0


def cache_folder() -> Path:
    """VISAGE_CACHE, or `visage` in the user's cache folder. It need not exist yet."""
    named = os.environ.get("VISAGE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "visage"
    return Path(named).expanduser().absolute()


@contextlib.contextmanager
def writing_to(cache: Path, needed: str) -> Iterator[None]:
    """Makes the folder, and turns what the disk refuses into a message; `needed` is the room to speak of."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as err:
        if err.errno == errno.ENOSPC:
            raise FetchError(f"the disk of {cache} is full; about {needed} are needed while fetching.") from err
        raise FetchError(f"cannot write to {cache}: {err}. VISAGE_CACHE names another folder.") from err


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a file lock, so that two builds at once fetch once."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build is fetching it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that takes its place when the block ends well, and is gone when it does not."""
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f"{target.name}.old.", dir=target.parent))
            target.rename(replaced / "old")
            staging.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
