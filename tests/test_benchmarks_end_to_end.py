"""Each of the six benchmarks from a local file of its real schema to a verdict, on the embedded model.

The rows are the embedded benchmark's own questions, so that what comes out can be compared with what is known: asked in
plain words, they must give the very scores that they give without any benchmark around them.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import layersurgery as ls
from layersurgery.cli import main
from layersurgery.embedded import load, make_samples
from layersurgery.scoring import RULES, model_family
from layersurgery.testing import restored
from tests import schemas

EMBEDDED = "digit_name"
NAMES = list(schemas.MAKERS)


@pytest.fixture(scope="module")
def natural():
    return load("natural")


@pytest.fixture(scope="module")
def asked():
    return make_samples(EMBEDDED, "test", 40)


@pytest.fixture(scope="module")
def files(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    return {name: schemas.write(name, asked, folder) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_load_prompt_extraction_sweep_verdict(name, files, asked, natural):
    model, processor = natural
    found = ls.benchmark(name)
    samples = found.samples(schemas.TASKS[name], source=files[name])
    assert [(one.question, one.options, one.answer) for one in samples] == [
        (one.question, one.options, one.answer) for one in asked
    ]
    style = ls.prompt_template("vlmevalkit", family=model_family(model), overrides=found.prompts.get("vlmevalkit"))
    scorer = ls.GenerationScorer(processor, extract=found.extractor, max_new_tokens=4, prompt=style)
    sites = ls.select(model)
    scorer(model, samples[:1])  # transformers adds hooks of its own at a model's first forward
    with restored(model):
        table = ls.sweep(model, scorer, samples[:6], at=sites)
        verdict = ls.talo(model, scorer, samples, at=sites, rule=ls.PaperRule(4), confirm=20, seed=1)
    assert table.scores.shape == (8, 6)
    for row, texts in zip(table.correct, table.text, strict=True):
        readers = [RULES[found.extractor].readers[sample.kind] for sample in samples[:6]]
        judged = [reader(text, sample).correct for reader, text, sample in zip(readers, texts, samples, strict=False)]
        assert row.tolist() == judged

    assert verdict.verdict in ("keep", "knock out")
    assert verdict.n_probe in (4, 6, 7)
    assert set(verdict.probe_ids).isdisjoint(verdict.confirm_ids)
    assert {*verdict.probe_ids, *verdict.confirm_ids} <= {sample.id for sample in samples}


@pytest.mark.parametrize("name", NAMES)
def test_asked_in_plain_words_a_benchmark_changes_nothing(name, files, asked, natural):
    model, processor = natural
    found = ls.benchmark(name)
    plain = ls.prompt_template("plain", overrides=found.prompts.get("plain"))
    samples = found.samples(schemas.TASKS[name], source=files[name])
    here = ls.ChoiceScorer(processor, prompt=plain)(model, samples)
    there = ls.ChoiceScorer(processor)(model, asked)
    assert np.array_equal(here.margin, there.margin)
    assert np.array_equal(here.correct, there.correct)
    assert here.correct.mean() > 0.6  # and the model does know something
    written = ls.GenerationScorer(processor, extract=found.extractor, max_new_tokens=4, prompt=plain)(model, samples)
    assert written.answered.mean() > 0.9
    assert np.array_equal(written.correct[written.answered], here.correct[written.answered])


@pytest.mark.parametrize("name", NAMES)
def test_the_one_line_command(name, files, tmp_path, capsys):
    words = ["talo", "natural", "--benchmark", name, "--task", schemas.TASKS[name], "--source", str(files[name])]
    assert main([*words, "--shots", "4", "--output", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "finding.json").read_text())
    assert record["data"]["benchmark"] == ls.benchmark(name).name
    assert record["data"]["rows_kept"] == 40
    assert record["scorer"]["kind"] == "choices"
    assert record["scorer"]["prompt"] == "vlmevalkit/default"
    assert record["confirm"] is None or record["confirm"]["samples"] == 40 - 7
    assert len(record["probe"]["ids"]) == record["probe"]["samples"]
