"""The bundled tiny checkpoint, which commands use when no model is given."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "tiny"
