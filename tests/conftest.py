"""What every test runs under: no model hub, one thread per worker, and hypothesis without a clock."""

from __future__ import annotations

import os

# Before anything imports transformers or a numerical library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if _IN_PARALLEL:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_configure() -> None:
    """Workers side by side must not each start a thread per core."""
    if _IN_PARALLEL:
        import torch

        torch.set_num_threads(1)
