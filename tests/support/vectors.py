"""Reading of the test vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent / "vectors"


def load(name: str) -> Any:
    """Return the JSON document `name`, relative to the folder of vectors."""
    return json.loads((ROOT / name).read_text(encoding="utf-8"))
