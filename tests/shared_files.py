"""Where the tests find real faces and golden files: `../shared` from the project's root. Absent: a visible skip."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
FACES = SHARED / "faces"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden files are not at {GOLDEN}")
needs_faces = pytest.mark.skipif(not FACES.is_dir(), reason=f"real faces are not at {FACES}")
