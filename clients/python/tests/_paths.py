"""Makes the client and its stubs importable from the working tree, without installing anything."""

import sys
from pathlib import Path

_CLIENT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_CLIENT))

from generate import stubs  # noqa: E402

sys.path[:0] = [str(_CLIENT / "src"), str(stubs())]
