"""The stand-in for a torchvision that fits: real where it counts, and loud where it is missing."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.with_torchvision import shim

ROOT = Path(__file__).resolve().parents[2]


def in_python(code, **settings):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **settings)


def test_transformers_finds_it_and_its_image_functions_are_real():
    import torchvision
    from torchvision.transforms.v2 import functional
    from transformers.utils import is_torchvision_available

    assert is_torchvision_available()
    assert int(torchvision.__version__.split(".")[1]) >= 20
    ramp = torch.arange(16.0).reshape(1, 4, 4)
    halved = functional.resize(ramp, [2, 2], antialias=True)
    assert halved.shape == (1, 2, 2)
    assert halved[0, 0, 0] < halved[0, 0, 1] < halved[0, 1, 0]


def test_a_process_with_its_environment_has_it_too(tmp_path):
    code = "from transformers.utils import is_torchvision_available as found; import torchvision; print(found())"
    assert in_python(code, env=shim.environment(), cwd=tmp_path).stdout.split() == ["True"]


def test_doing_it_again_changes_nothing():
    code = "from tests.with_torchvision import shim; shim.install(); import transformers; shim.install(); print('fine')"
    assert in_python(code, env=shim.environment(), cwd=ROOT).stdout.split() == ["fine"]


def test_without_it_the_tests_fail_and_say_what_to_do(tmp_path):
    code = "from pathlib import Path; from tests.with_torchvision import shim; shim.install(Path('nowhere'))"
    ended = in_python(code, cwd=ROOT)
    assert ended.returncode == 1
    assert "RuntimeError: these tests need torchvision" in ended.stderr
    assert "make test" in ended.stderr


def test_it_refuses_to_come_too_late():
    ended = in_python("import transformers; from tests.with_torchvision import shim; shim.install()", cwd=ROOT)
    assert ended.returncode == 1
    assert "transformers was imported before torchvision" in ended.stderr


def test_a_torchvision_whose_operators_load_is_left_alone(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_meta_registrations.py").write_text('@register_meta("nms")\n')
    library = package / "_C.so"
    check = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tests.with_torchvision import shim; shim.install(); "
        "import torch; print(hasattr(torch.ops.torchvision, 'nms'))"
    )
    library.write_bytes(b"built for another machine")
    assert in_python(check, cwd=ROOT).stdout.split() == ["True"], "declared, since nothing real can be loaded"
    shutil.copy(math.__file__, library)  # a library that loads here, whatever is in it
    assert in_python(check, cwd=ROOT).stdout.split() == ["False"]
