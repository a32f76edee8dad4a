"""`layersurgery talo MODEL --benchmark ...`, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from layersurgery.cli import main
from layersurgery.embedded import make_samples
from tests import schemas
from tests.tasks.mini_hub import MiniHub
from tests.with_torchvision import checkpoints, shim

WORDING = {"llava_next": "vlmevalkit/llava", "qwen2_vl": "vlmevalkit/qwen2_vl", "internvl": "vlmevalkit/internvl"}


@pytest.fixture(scope="module")
def asked():
    return make_samples("shape_kind", "test", 30)


def run(*words, **environment):
    command = [sys.executable, "-m", "layersurgery", *map(str, words)]
    settings = {**shim.environment(), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


def ok(*words, **environment):
    done = run(*words, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Every family, every benchmark and both scorers at least once.
BENCHMARKS = {
    "llava_next": [("mmstar", "generate"), ("seedbench", "choices")],
    "qwen2_vl": [("scienceqa", "choices"), ("mathvista", "generate")],
    "internvl": [("mmbench", "choices"), ("mmmu", "generate")],
}


@pytest.mark.parametrize("turn", [0, 1])
def test_a_folder_in_place_of_the_hub_id(family, folder, turn, asked, tmp_path, capsys):
    name, scorer = BENCHMARKS[family][turn]
    file = schemas.write(name, asked, tmp_path)
    words = ["talo", folder, "--benchmark", name, "--task", schemas.TASKS[name], "--source", file, "--shots", 4]
    words += ["--scorer", scorer, "--confirm", 8, "--output", tmp_path / "out", "--json"]
    assert main(list(map(str, words))) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scorer"]["prompt"] == WORDING[family]
    assert record["scorer"]["kind"] == scorer
    assert record["sites"] == checkpoints.LAYERS
    assert record["verdict"] in ("keep", "knock out")
    assert record["loaded"]["device"] == "cpu"
    assert (tmp_path / "out" / "finding.json").is_file()
    assert (record["confirm"] is None) == (record["verdict"] == "keep")


def test_the_line_in_the_readme_from_a_hub(asked, tmp_path):
    """With the very ids: a hub of one's own serves a tiny checkpoint and a small data set under them."""
    checkpoints.build("qwen2_vl", tmp_path / "hub" / "models" / "Qwen" / "Qwen2-VL-2B-Instruct")
    data = tmp_path / "hub" / "datasets" / "derek-thomas" / "ScienceQA" / "data"
    data.mkdir(parents=True)
    schemas.write("scienceqa", asked, tmp_path).rename(data / "validation-00000-of-00001.parquet")
    line = "talo Qwen/Qwen2-VL-2B-Instruct --benchmark scienceqa --task maps --shots 15 --json"
    with MiniHub(tmp_path / "hub") as hub:
        record = json.loads(ok(*line.split(), **hub.environment(tmp_path / "cache")))
        assert record["data"]["revision"] == hub.commit("datasets", "derek-thomas/ScienceQA")
        assert record["loaded"]["revision"] == hub.commit("models", "Qwen/Qwen2-VL-2B-Instruct")
    assert record["data"]["rows_kept"] == 30
    assert record["loaded"]["architecture"] == "Qwen2VLForConditionalGeneration"
    assert record["rule"] == "PaperRule(shots=15)"
    assert len(record["probe"]["ids"]) in (15, 22, 25)


def test_a_dry_run_says_what_it_would_take(asked, tmp_path, capsys):
    folder = checkpoints.build("internvl", tmp_path / "model")
    file = schemas.write("scienceqa", asked, tmp_path)
    words = ["talo", folder, "--benchmark", "scienceqa", "--task", "maps", "--source", file, "--shots", 4, "--dry-run"]
    assert main(list(map(str, words))) == 0
    text = capsys.readouterr().out
    assert "evaluations" in text
    assert "memory" in text
    assert main([*map(str, words), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    all_rounds = (checkpoints.LAYERS + 1) * 7
    assert plan["evaluations"] == [all_rounds, all_rounds + 2 * 23]  # without and with something to check
    assert not (tmp_path / "finding.json").exists()
