"""Puts the generated stubs into the package when it is built from a checkout; the rest stands in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generate import stubs  # noqa: E402


class BuildWithStubs(build_py):
    """Copies `visage.v1` beside `visage_client`."""

    def run(self) -> None:
        super().run()
        shutil.copytree(stubs() / "visage", Path(self.build_lib) / "visage", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithStubs})
