"""Python runs this at its start where the folder is on PYTHONPATH: see `shim.environment`."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("shim", Path(__file__).resolve().parent.parent / "shim.py")
assert _spec is not None
assert _spec.loader is not None
_shim = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shim)
_shim.install()
