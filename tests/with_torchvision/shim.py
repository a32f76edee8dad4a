"""Make torchvision importable on a build of torch that its compiled operators do not fit: for tests only.

Some processors of transformers (those of Qwen2-VL and InternVL) need torchvision, whose package on PyPI is built for
CUDA. On a CPU build of torch its library of compiled operators cannot be loaded, and `import torchvision` fails where
it registers shapes and gradients for them. None of them takes part in processing images. So they are declared here,
without anything behind them, and all else of torchvision is the real thing.

`install()` must run before transformers is imported, which looks for torchvision once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Not in site-packages: everything else is tested without torchvision, as many users have it.
FOLDER = Path(sys.prefix) / "torchvision"

_REGISTRATION = re.compile(r'@(?:register_meta|torch\.library\.register_fake)\("(?:torchvision::)?(\w+)"')
_keep: list[Any] = []  # a library's declarations end with the object


def install(folder: Path = FOLDER) -> None:
    """Put torchvision from `folder` on the path and declare its operators; a torchvision that works is left alone.

    Raises:
        RuntimeError: if there is no torchvision, or transformers was imported before.
    """
    if "torchvision" in sys.modules or _operators_are_there():
        return
    if importlib.util.find_spec("torchvision") is None and str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            f"these tests need torchvision, and there is none in {folder} or site-packages; run them with `make test`, "
            "which installs it there"
        )
    if "transformers" in sys.modules:
        raise RuntimeError(
            "transformers was imported before torchvision could be set up; run these tests in a process of their own: "
            "python -m pytest tests/with_torchvision"
        )
    package = Path(spec.origin).parent
    if not _compiled_operators_load(package):
        _declare_operators(package)


def environment() -> dict[str, str]:
    """The environment for a Python process that is to have torchvision too: it runs `install` when it starts."""
    paths = [str(HERE / "startup"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _operators_are_there() -> bool:
    """Whether this ran before, perhaps at the start of Python."""
    return "torch" in sys.modules and hasattr(sys.modules["torch"].ops.torchvision, "nms")


def _compiled_operators_load(package: Path) -> bool:
    import torch

    libraries = [path for path in package.glob("_C*") if path.suffix in (".so", ".pyd")]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


def _declare_operators(package: Path) -> None:
    import torch

    source = (package / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in dict.fromkeys(_REGISTRATION.findall(source)):
        library.define(f"{name}(Tensor a) -> Tensor")
    _keep.append(library)
