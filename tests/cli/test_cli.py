"""The command line, run as a user runs it: as a process, on the embedded models and on local folders and files."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import layersurgery as ls
from layersurgery.cli import main
from layersurgery.cli._main import _parser
from layersurgery.cli._talo import _intervention, _rule
from layersurgery.embedded import TASKS, make_samples
from layersurgery.errors import InterventionError, TaskError
from layersurgery.sweeps import Store
from tests import models

README = Path(__file__).parents[2] / "README.md"


def run(*words, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
    command = [sys.executable, "-m", "layersurgery", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **settings)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def here(*words):
    """As `run`, but in this process, which has imported everything already."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(list(map(str, words)))
    return Done(code, out.getvalue(), err.getvalue())


def ok(*words):
    done = here(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pruning_finds_the_same_for_less(capsys):
    words = ["talo", "planted", "--task", "digit_name", "--shots", "10", "--confirm", "0", "--json"]
    records = []
    for more in ([], ["--prune"]):
        assert main([*words, *more]) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert records[0]["site"] == records[1]["site"]
    assert records[0]["probe"]["gain"] == records[1]["probe"]["gain"]
    assert records[1]["rule"] == "PaperRule(shots=10, prune=True)"
    assert records[1]["evaluations"] <= records[0]["evaluations"]


def test_a_second_run_takes_everything_from_the_store(tmp_path, capsys):
    words = ["talo", "planted", "--task", "digit_name", "--shots", "10", "--confirm", "20", "--json"]
    words += ["--store", str(tmp_path / "runs.db")]
    records = []
    for _ in range(2):
        assert main(words) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert {**records[0], "seconds": 0, "text": ""} == {**records[1], "seconds": 0, "text": ""}
    with Store(tmp_path / "runs.db") as store:
        assert sum(run.cells for run in store.runs()) == records[0]["evaluations"]


TORCHAO_SAYS = re.compile(r"Failed to load .*torchao|W\d{4} ")  # when transformers imports it, for it is installed


def failing(code, message, *words):
    done = here(*words)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    return "".join(line for line in done.stderr.splitlines(keepends=True) if not TORCHAO_SAYS.match(line))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A local checkpoint of a real class, with no processor."""
    path = tmp_path_factory.mktemp("checkpoint")
    models.built("qwen2_vl").save_pretrained(path)
    return path


def test_help_is_quick():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert "inspect" in ok("--help")
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 1
    for command in ("inspect", "talo", "tasks", "demo"):
        assert "--json" in ok(command, "--help")
    assert ok("--version").strip() == f"layersurgery {ls.__version__}"


def test_the_installed_command_is_the_same():
    done = subprocess.run(
        ["layersurgery", "--version"], capture_output=True, text=True, check=False, env=_with_scripts()
    )
    assert done.stdout.strip() == f"layersurgery {ls.__version__}"


def _with_scripts():
    return {**os.environ, "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]}


def test_inspect(folder):
    text = ok("inspect", folder)
    assert "Qwen2VLForConditionalGeneration" in text
    assert "layers 0 to 2: Qwen2VLDecoderLayer" in text
    assert "vision: model.visual.blocks" in text
    record = json.loads(ok("inspect", folder, "--json"))
    assert record["model"] == str(folder)
    assert {tower["name"] for tower in record["towers"]} == {"vision", "language"}
    table = ok("inspect", folder, "--role", "attention")
    assert "model.language_model.layers.2.self_attn" in table
    assert "meta" not in table
    vision = json.loads(ok("inspect", folder, "--tower", "vision", "--role", "mlp", "--json"))
    assert [site["path"] for site in vision["sites"]] == [f"model.visual.blocks.{index}.mlp" for index in range(2)]
    assert len(json.loads(ok("inspect", "natural", "--pattern", "*.o_proj", "--json"))["sites"]) == 8


def test_inspect_needs_no_weights(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    text = ok("inspect", tmp_path)
    assert "self_attn" in text
    assert "weights are not in memory" in text


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, "the following arguments are required: COMMAND", ()),
        (2, "invalid choice: 'operate'", ("operate",)),
        (2, "the following arguments are required: MODEL", ("inspect",)),
        (2, "'-3' is not a whole number", ("talo", "natural", "--shots=-3")),
        (2, "'many' is not a whole number", ("talo", "natural", "--confirm", "many")),
        (2, "--task is needed without --benchmark and --data; the embedded tasks are digit_name", ("talo", "natural")),
        (2, "no task 'shape_cont': did you mean 'shape_count'", ("talo", "natural", "--task", "shape_cont")),
        (1, "no model './nowhere'", ("inspect", "./nowhere")),
        (1, "no tower 'audio'", ("inspect", "natural", "--tower", "audio")),
        (1, "near misses", ("inspect", "natural", "--pattern", "self_attn")),
        (
            1,
            "unknown intervention 'zeros' (did you mean 'zero'?)",
            ("talo", "natural", "--task", "digit_sum", "--do", "zeros"),
        ),
        (1, "there is no file nowhere.jsonl", ("talo", "natural", "--data", "nowhere.jsonl")),
        (1, "unknown dtype 'float3'", ("talo", "natural", "--task", "digit_sum", "--dtype", "float3")),
    ],
)
def test_errors_are_one_line_and_exit_codes_tell_them_apart(code, message, words):
    stderr = failing(code, message, *words)
    assert len(stderr.strip().splitlines()) == 1 or stderr.startswith("usage:")


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, "--source belongs to --benchmark", ("talo", "natural", "--task", "digit_sum", "--source", "x.parquet")),
        (2, "--circular belongs to --benchmark", ("talo", "natural", "--task", "digit_sum", "--circular")),
        (2, "--benchmark and --data were both given", ("talo", "natural", "--benchmark", "mmmu", "--data", "x.jsonl")),
        (2, "did you mean 'mmstar'", ("talo", "natural", "--benchmark", "mmstarr")),
        (2, "mmmu_val has no task 'mats'", ("talo", "natural", "--benchmark", "mmmu", "--task", "mats")),
        (1, "there is no file x.parquet", ("talo", "natural", "--benchmark", "mmmu", "--source", "x.parquet")),
        (
            2,
            "--extract is for generated answers",
            ("talo", "natural", "--task", "digit_sum", "--scorer", "choices", "--extract", "mmmu-v1"),
        ),
        (1, "unknown rule 'mmmu'", ("talo", "natural", "--task", "digit_sum", "--extract", "mmmu")),
        (1, "there is no prompt style 'vlm'", ("talo", "natural", "--task", "digit_sum", "--prompt", "vlm")),
        (2, "did you mean 'scienceqa'", ("tasks", "sciencqa")),
    ],
)
def test_errors_of_questions_and_of_ways_to_ask_them(code, message, words, capsys):
    assert main(list(words)) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err


def test_debug_shows_the_traceback():
    done = run("inspect", "natural", "--tower", "audio", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_talo_on_the_planted_layer(tmp_path):
    out = tmp_path / "out"
    words = ("talo", "planted", "--task", "digit_name", "--shots", "10", "--confirm", "50", "--output", out)
    text = ok(*words)
    assert text.startswith("Knock out: zero model.language_model.layers.")
    record = json.loads((out / "finding.json").read_text())
    assert record["confirm"]["gain"] > 0.3
    assert record["confirm"]["samples"] == 50
    assert str(ls.Surgery.from_pretrained(out)) == record["surgery"]
    again = json.loads(ok(*words, "--json"))
    assert {**again, "seconds": 0, "text": ""} == {**record, "seconds": 0, "text": ""}  # same seed, same numbers


def test_talo_halves_the_sites_unless_asked_for_the_papers_rule():
    words = ("talo", "planted", "--task", "digit_name", "--confirm", "30", "--json")
    record = json.loads(ok(*words))
    assert record["rule"] == "HalvingRule(labels=None, budget=None, z=1.5, eta=2, prior=None)"
    assert record["decision"]["smoothed"]
    assert record["confirm"]["gain"] > 0.3
    assert record["corrected"] is None
    alone = json.loads(ok(*words[:4], "--confirm", "0", "--labels", "60", "--json"))
    assert alone["rule"].startswith("HalvingRule(labels=60")
    assert alone["corrected"]["gain"] <= alone["probe"]["gain"]
    assert alone["corrected"]["interval"]["method"].endswith("Bonferroni over 9 sites")


def test_talo_with_several_interventions_and_sites():
    words = ("talo", "planted", "--task", "digit_name", "--labels", "60", "--confirm", "40", "--json")
    record = json.loads(ok(*words, "--do", "zero", "scale(factor=0.5)", "--max-sites", "2", "--beam", "2"))
    assert record["surgery"].startswith("zero model.language_model.layers.")
    assert record["sites"] == 18
    assert len(record["further"]) == 1
    assert record["further"][0]["under"] == record["surgery"].split(" + ")[0]
    assert record["finalist"] == record["further"][0]["under"]
    assert record["labels"] <= 100


@pytest.mark.parametrize(
    "text", ["scale(0.5)", "scale(factor=)", "scale(factor=print)", "scale(factor=0.5", "(", "nil"]
)
def test_interventions_that_cannot_be_read_are_refused(text):
    with pytest.raises((TaskError, InterventionError), match=r"scale\(factor=0.5\)|unknown intervention"):
        _intervention(text)
    assert _intervention("noise(std=0.5, seed=3)") == ls.Noise(std=0.5, seed=3)
    with pytest.raises(InterventionError, match="needs a value for 'factor'"):
        _intervention("scale")


def test_options_of_one_rule_are_refused_with_the_other():
    def rule(*words):
        return _rule(_parser().parse_args(["talo", "planted", *words]))

    assert rule() == ls.HalvingRule()
    assert rule("--labels", "30") == ls.HalvingRule(30)
    assert rule("--shots", "8") == rule("--rule", "paper", "--shots", "8") == ls.PaperRule(8)
    assert rule("--prune") == ls.PaperRule(20, prune=True)
    with pytest.raises(TaskError, match="--shots and --prune are for --rule paper"):
        rule("--rule", "halving", "--shots", "10")
    with pytest.raises(TaskError, match="--labels is for --rule halving"):
        rule("--rule", "paper", "--labels", "10")


def test_talo_on_ones_own_file(tmp_path):
    """JSONL with image paths, another scorer, another intervention and other sites."""
    lines = []
    for number, sample in enumerate(make_samples("shape_kind", "test", 40)):
        name = f"{number}.png"
        sample.images[0].save(tmp_path / name)
        row = {
            "question": sample.question,
            "options": sample.options,
            "answer": sample.letter,
            "image": name,
            "task": "kinds",
        }
        lines.append(json.dumps(row))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    data = ("--data", tmp_path / "mine.jsonl", "--task", "kinds")
    words = ("--shots", "8", "--scorer", "generate", "--do", "uniform", "--role", "mlp", "--confirm", "20", "--json")
    record = json.loads(ok("talo", "natural", *data, *words))
    assert record["sites"] == 8
    assert 0 <= record["probe"]["base"] <= 1
    failing(
        1,
        "may need 35 labelled samples, and confirm=20 keeps 20 away from it: 55 in all; there are 40",
        "talo",
        "natural",
        *data,
        "--confirm",
        "20",
        "--shots",
        "20",
    )
    failing(2, "no row of task 'kind': did you mean 'kinds'", "talo", "natural", *data[:2], "--task", "kind")


def test_talo_on_a_local_folder_of_another_class(tmp_path):
    """A text model with a real tokenizer, loaded from a folder as from the hub."""
    from tests.scoring import tiny

    tokenizer = tiny.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.llama(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"question": "red", "options": ["red", "blue"], "answer": index % 2} for index in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = json.loads(ok("talo", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--shots", "8", "--json"))
    assert record["sites"] == 3


def test_ctrl_c_is_a_clean_message():
    heard = (  # a shell makes its background jobs, and what these start, deaf to it
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('layersurgery', run_name='__main__', alter_sys=True)"
    )
    words = [sys.executable, "-c", heard, "talo", "natural", "--task", "shape_count", "--confirm", "20000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(6)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert stdout == ""
    assert "interrupted; the model was restored" in stderr
    assert "Traceback" not in stderr


def test_demo(tmp_path):
    """Once, as people see it; what it writes for machines must say the same."""
    text = ok("demo", "--output", tmp_path)
    for words in ("model.language_model.layers.0.self_attn", "paired interval", "before  after", "Restored", "done in"):
        assert words in text
    assert "\033" not in text  # not a terminal: no colours
    assert _findings(text) == _findings(README.read_text())  # README shows what one sees

    report = json.loads((tmp_path / "demo.json").read_text())
    natural, planted, nothing = report["findings"]
    assert natural["verdict"] == planted["verdict"] == "knock out"
    assert natural["interval"]["low"] > 0  # on 500 samples that the search never saw
    assert planted["confirm"]["gain"] > 0.5
    assert nothing["verdict"] == "keep"
    assert {found["task"] for found in report["findings"]} <= set(TASKS)
    assert all(found["confirm"]["samples"] == 500 for found in (natural, planted))

    assert report["restored"] is True
    assert report["file"]["same"] is True
    assert ls.Surgery.from_pretrained(tmp_path).sites[0].path == natural["site"]["path"]
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert len(report["map"]["tasks"]) == 13
    assert len(report["map"]["points"][0]) == len(report["sites"]) == 8
    assert len(report["answers"]) == 3
    assert all(row["before"] != row["after"] for row in report["answers"])


def _findings(text):
    """The headings and what was found under each: without the numbers of a run, which another processor may round."""
    lines = text.splitlines()
    headings = [line for line, below in pairwise(lines) if below and set(below) == {"-"}]
    return headings, re.findall(r"^(?:Knock out: zero \S+ \(layer \d+\)|Keep the model as it is)", text, re.MULTILINE)


def test_demo_for_machines(tmp_path, monkeypatch, capsys):
    """One JSON object and nothing else, with --json; the steps themselves are tested above."""
    from layersurgery.cli import _demo, main

    monkeypatch.setattr(_demo._Demo, "run", lambda self: {"shown": self._show})
    assert main(["demo", "--output", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["shown"] is False
    assert json.loads((tmp_path / "demo.json").read_text()) == report
