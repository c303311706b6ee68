"""The preparing of a Python from requirements, with packages from a folder of this machine."""

import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "venv.py"


def write_wheel(folder: Path, name: str, depends_on: str) -> None:
    """An empty package that asks for another one."""
    about = f"{name}-1.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        needs = f"Requires-Dist: {depends_on}\n" if depends_on else ""
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needs}")
        wheel.writestr(f"{about}/RECORD", "")


class VenvTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        write_wheel(self.folder, "base", "")
        write_wheel(self.folder, "peer", "base==0")
        (self.folder / "base.txt").write_text("base==1\n")
        (self.folder / "peer.txt").write_text("peer==1\n")

    def prepare(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "VISAGE_CACHE": str(self.folder / "cache"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
        }
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def test_a_package_without_its_dependencies_goes_on_top(self) -> None:
        done = self.prepare("base.txt", "--no-deps", "peer.txt")
        self.assertEqual(done.returncode, 0, done.stderr)
        python = done.stdout.strip()
        subprocess.run([python, "-c", "import base, peer"], check=True)
        again = self.prepare("base.txt", "--no-deps", "peer.txt")
        self.assertEqual((again.stdout.strip(), again.stderr), (python, ""))

    def test_a_file_that_is_not_there_is_named(self) -> None:
        done = self.prepare("base.txt", "--no-deps", "none.txt")
        self.assertEqual(done.returncode, 1)
        self.assertIn("there is no none.txt", done.stderr)


if __name__ == "__main__":
    unittest.main()
