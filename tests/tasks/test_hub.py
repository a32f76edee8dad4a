"""The hub's way, with the real clients, on a hub of our own: pinned commits, streaming, offline, and models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layersurgery.embedded import checkpoint_path
from tests.tasks import fixtures as fx
from tests.tasks.mini_hub import MiniHub

CARD = """---
configs:
{configs}
---
"""
CONFIG = "- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}"


def publish(root, repo, data, configs, split):
    folder = root / "datasets" / repo
    parts = []
    for name, rows in configs.items():
        data.select(rows).to_parquet(folder / name / f"{split}.parquet")
        parts.append(CONFIG.format(name=name, split=split, path=f"{name}/{split}.parquet"))
    (folder / "README.md").write_text(CARD.format(configs="\n".join(parts)))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    publish(root, "Lin-Chen/MMStar", fx.mmstar(), {"val": range(6)}, "val")
    publish(root, "someone/Copy", fx.mmbench(), {"en": range(5)}, "dev")
    (root / "models" / "tiny").mkdir(parents=True)
    shutil.copytree(checkpoint_path("planted"), root / "models" / "tiny" / "vlm")
    with MiniHub(root) as running:
        yield running


@pytest.fixture(scope="module")
def ask(hub, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def ask(program, **environment):
        settings = {**os.environ, **hub.environment(cache), "OMP_NUM_THREADS": "1", **environment}
        program = f"import json, warnings\nfrom layersurgery.tasks import benchmark\n{program}"
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=settings, check=False
        )

    return ask


def said(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOAD = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    samples = benchmark({name!r}).samples({arguments})
said = [str(warning.message) for warning in caught]
print(json.dumps([samples.origin, [s.id for s in samples], [text for text in said if "definition" in text]]))
"""


def test_the_commit_is_resolved_used_and_recorded(hub, ask):
    origin, ids, warnings = said(ask(LOAD.format(name="mmstar", arguments="'math'")))
    commit = hub.commit("datasets", "Lin-Chen/MMStar")
    assert origin["revision"] == commit
    assert (origin["source"], origin["layout"], origin["rows_read"]) == ("Lin-Chen/MMStar", "hub", 6)
    assert ids == ["0", "1", "776", "1199"]
    assert any(f"/resolve/{commit}/val/val.parquet" in line for line in hub.asked)
    assert any(f"/api/datasets/Lin-Chen/MMStar/revision/{commit}" in line for line in hub.asked)
    assert not any("/resolve/main/" in line for line in hub.asked)
    (warning,) = warnings
    assert "mmstar has 6 rows, where the definition says 1500 and 4 samples of math" in warning

    # the same, without the hub: what is on the machine is of a known commit
    offline, ids_offline, _ = said(ask(LOAD.format(name="mmstar", arguments="'math'"), HF_HUB_OFFLINE="1"))
    assert (offline, ids_offline) == (origin, ids)
    done = ask(LOAD.format(name="mmstar", arguments=f"revision={'0' * 40!r}"), HF_HUB_OFFLINE="1")
    assert done.returncode != 0
    assert f"is of {commit}, not of {'0' * 40}" in done.stderr


def test_streaming_stops_and_is_pinned_too(hub, ask):
    origin, ids, warnings = said(ask(LOAD.format(name="mmstar", arguments="limit=2, streaming=True, revision='main'")))
    assert origin["revision"] == hub.commit("datasets", "Lin-Chen/MMStar")
    assert (ids, origin["rows_read"], warnings) == (["0", "1"], 2, [])


def test_another_hub_id_of_the_same_layout(hub, ask):
    origin, ids, _ = said(ask(LOAD.format(name="mmbench", arguments="source='someone/Copy', circular=True")))
    assert origin["revision"] == hub.commit("datasets", "someone/Copy")
    assert ids == ["3", "8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("source='someone/Gone'", r"someone/Gone (val, val) cannot be loaded from the hub"),
        ("revision='no-branch'", "RevisionNotFound"),
        ("source='someone/Copy'", "cannot be loaded from the hub"),
    ],
)
def test_what_the_hub_does_not_have(ask, arguments, message):
    done = ask(LOAD.format(name="mmstar", arguments=arguments))
    assert done.returncode != 0
    assert "layersurgery.errors.SampleError" in done.stderr
    assert message in done.stderr


def test_a_model_of_the_hub(hub, ask, tmp_path):
    """What `from_pretrained` does first: all files, as they are."""
    program = f"""
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download("tiny/vlm", cache_dir={str(tmp_path)!r})))
"""
    got = Path(said(ask(program)))
    assert got.name == hub.commit("models", "tiny/vlm")
    original = checkpoint_path("planted")
    assert {file.name: file.read_bytes() for file in got.iterdir()} == {
        file.name: file.read_bytes() for file in original.iterdir()
    }
