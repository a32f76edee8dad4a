"""What users install: the wheel's contents, sizes and metadata, and what `import layersurgery` costs."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = "layersurgery/embedded/checkpoints/"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    return Parser().parsestr(_dist_info(wheel, "METADATA"))


def test_the_wheel_is_for_every_python_3_and_platform(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_types_are_marked(contents):
    assert "layersurgery/py.typed" in contents


def test_every_module_of_the_package_is_in_the_wheel(contents):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "layersurgery").rglob("*.py")}
    assert len(modules) > 20
    assert not modules - set(contents)


def test_the_benchmarks_definitions_are_in_the_wheel(contents):
    assert {"benchmarks_tasks/embedded.toml"} <= set(contents)


def test_nothing_else_is_in_the_wheel(contents):
    tops = {name.split("/")[0] for name in contents}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"layersurgery", "benchmarks_tasks"}
    assert not [name for name in contents if "__pycache__" in name or name.endswith((".pyc", ".pt", ".log"))]


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size <= 12 * MEGABYTE


def test_each_checkpoint_is_small_and_in_the_wheel(contents):
    sizes: dict[str, int] = {}
    for name, size in contents.items():
        if name.startswith(CHECKPOINTS):
            checkpoint = name.removeprefix(CHECKPOINTS).split("/")[0]
            sizes[checkpoint] = sizes.get(checkpoint, 0) + size
    assert set(sizes) >= {"natural", "planted"}
    assert all(size <= 3 * MEGABYTE for size in sizes.values()), sizes


def test_the_licence_is_there(wheel, metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in _dist_info(wheel, "licenses/LICENSE")


def test_the_extras_are_for_users(metadata):
    assert set(metadata.get_all("Provides-Extra", [])) >= {"plots", "testing"}


def test_requirements_are_lower_bounds(metadata):
    """A pin here would fight with other packages' pins; constraints.txt is the place for them."""
    requirements = [line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist", [])]
    assert requirements
    assert not [line for line in requirements if not re.fullmatch(r"[\w.-]+(\[[\w,]+\])?>=[\d.]+", line)]


def test_the_version_is_the_same_everywhere(wheel, metadata):
    import layersurgery

    assert metadata["Version"] == layersurgery.__version__
    assert f"-{layersurgery.__version__}-" in wheel.name
    assert f"## [{layersurgery.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_entry_points_lead_somewhere(wheel):
    declared = ConfigParser()
    declared.read_string(_dist_info(wheel, "entry_points.txt"))
    assert dict(declared["console_scripts"]) == {"layersurgery": "layersurgery.cli:main"}
    assert set(declared["layersurgery.interventions"]) >= {"zero", "uniform", "mean", "noise"}
    for group in declared.sections():
        for name, target in declared[group].items():
            assert callable(EntryPoint(name, target, group).load())


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, layersurgery; print(*sys.modules)"
    loaded = set(_python(code).split())
    assert "layersurgery" in loaded
    assert not loaded & {"torch", "transformers", "nnsight", "numpy", "scipy", "datasets", "matplotlib", "pandas"}


def test_every_public_name_can_be_reached():
    import layersurgery

    for name in layersurgery.__all__:
        assert getattr(layersurgery, name) is not None
    assert set(layersurgery.__all__) <= set(dir(layersurgery))


def test_importing_the_package_costs_at_most_15_percent_more_than_torch():
    """In fresh interpreters, taking turns, so that a busy machine slows both alike."""
    times: dict[str, list[float]] = {"torch": [], "layersurgery": []}
    for _ in range(3):
        for name, runs in times.items():
            code = f"import time; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"
            runs.append(float(_python(code)))
    assert statistics.median(times["layersurgery"]) <= 1.15 * statistics.median(times["torch"]), times


def _python(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _dist_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()
