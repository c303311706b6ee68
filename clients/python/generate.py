#!/usr/bin/env python3
"""Makes the client's stubs from the repository's protos, and prints the folder that holds them.

Nothing generated is committed: the stubs stand in `build/`, which git ignores, in a folder named after the protos'
digest. The messages of google.rpc and google.longrunning come from googleapis-common-protos and are not made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "proto"
PACKAGE = "visage/v1"


def stubs() -> Path:
    """The folder to put on Python's path; made if the protos have changed."""
    sources = sorted((PROTOS / PACKAGE).glob("*.proto"))
    if not sources:
        raise SystemExit(f"generate: there are no protos in {PROTOS / PACKAGE}")
    key = hashlib.sha256(Path(__file__).read_bytes())
    for source in sources:
        key.update(source.name.encode() + b"\0" + source.read_bytes())
    target = HERE / "build" / f"stubs-{key.hexdigest()[:16]}"
    if not target.is_dir():
        target.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="stubs.", dir=target.parent))
        try:
            generate(sources, made)
            os.replace(made, target)
        except OSError:
            # Another run was faster: its folder is the same.
            if not target.is_dir():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return target


def generate(sources: list[Path], into: Path) -> None:
    """Runs the protobuf compiler that grpcio-tools carries."""
    from grpc_tools import protoc

    arguments = ["protoc", f"--proto_path={PROTOS}", f"--proto_path={resources.files('grpc_tools') / '_proto'}"]
    arguments += [f"--python_out={into}", f"--pyi_out={into}", f"--grpc_python_out={into}"]
    if protoc.main(arguments + [str(source) for source in sources]) != 0:
        raise SystemExit("generate: the protos could not be compiled; see above")
    for folder in ("visage", PACKAGE):
        (into / folder / "__init__.py").touch()


if __name__ == "__main__":
    print(stubs())
    sys.exit(0)
