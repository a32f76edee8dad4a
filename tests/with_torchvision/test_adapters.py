"""The adapters: what `load` sets, and their programs from the command line's options to the finding."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import layersurgery as ls
from layersurgery.scoring import prompt_template
from layersurgery.tasks import benchmark
from tests.with_torchvision.checkpoints import LAYERS
from tests.with_torchvision.questions import picture, right_without, samples, write_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "vlm_adapters"
HARNESS_NAMES = {"llava_next": "llava", "qwen2_vl": "qwen2_vl", "internvl": "internvl"}


@pytest.fixture(scope="session")
def adapter(family):
    return importlib.import_module(f"examples.vlm_adapters.{family}")


def image_tokens(processor, image):
    encoded = processor(text=[processor.image_token], images=[[image]], return_tensors="pt")
    return int((encoded["input_ids"] == processor.image_token_id).sum())


def test_load_gives_a_model_in_evaluation_mode_as_it_was_stored(adapter, folder, vlm):
    model, processor = adapter.load(folder)
    assert not model.training
    assert type(model) is type(vlm[0])
    assert model.dtype == torch.float32
    assert processor.to_json_string() == vlm[1].to_json_string()
    assert adapter.load(folder, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_load_takes_a_device_map(adapter, folder):
    model, _ = adapter.load(folder, device_map="cpu")
    assert model.device.type == "cpu"
    assert not model.training


# A picture, and settings by which it costs more and more.
SETTINGS = {
    "llava_next": (2, [{"max_tiles": 2}, {}]),
    "qwen2_vl": (4, [{"min_pixels": 784, "max_pixels": 784}, {}, {"min_pixels": 20 * 784, "max_pixels": 40 * 784}]),
    "internvl": (4, [{"max_tiles": 1}, {"max_tiles": 2}, {}]),
}


def test_size_settings_change_what_an_image_costs_and_the_model_agrees(adapter, family, folder):
    number, ladder = SETTINGS[family]
    shown, costs, fingerprints = picture(number), [], set()
    for settings in ladder:
        model, processor = adapter.load(folder, **settings)
        costs.append(image_tokens(processor, shown))
        question = ls.Sample("q", "What is it?", ("a roof", "a leaf"), 0, (shown,))
        score = ls.ChoiceScorer(processor)
        fingerprints.add(score.fingerprint)
        assert len(score(model, [question])) == 1
    assert costs == sorted(set(costs)), "each setting costs more than the one before it"
    assert len(fingerprints) == len(ladder)


def test_llava_next_says_which_grids_there_are(adapter, family, folder):
    if family == "llava_next":
        with pytest.raises(ValueError, match=r"max_tiles=1 leaves none of the grids \[\[28, 56\]"):
            adapter.load(folder, max_tiles=1)


def test_internvl_cuts_whatever_its_image_processor_says(adapter, family, folder):
    if family == "internvl":
        processor = adapter.load(folder)[1]
        before = image_tokens(processor, picture(4))
        processor.image_processor.crop_to_patches = False
        assert image_tokens(processor, picture(4)) == before


def test_main_finds_a_planted_layer_and_writes_the_surgery(adapter, family, folder, tmp_path, capsys):
    model, processor = adapter.load(folder)
    asked = ls.ChoiceScorer(processor, prompt=prompt_template("vlmevalkit", family=HARNESS_NAMES[family]))
    planted = right_without(ls.select(model)[2], model, asked, samples(30))
    file = write_file(tmp_path, planted)
    options = ["--model", str(folder), "--data", str(file), "--task", "photographs", "--shots", "6", "--confirm", "10"]
    found = adapter.main([*options, "--output", str(tmp_path / "out")])
    assert found.site.path == "model.language_model.layers.2.self_attn"
    assert found.confirm_score == 1
    shown = capsys.readouterr().out
    assert str(found) in shown
    assert "surgery.json" in shown
    again = ls.Surgery.from_pretrained(tmp_path / "out")
    with again(model):
        assert asked(model, planted).correct.all()


def test_main_generates_where_it_is_asked_to(adapter, folder, tmp_path, capsys):
    file = write_file(tmp_path, samples(14))
    options = ["--model", str(folder), "--data", str(file), "--scorer", "generate", "--prompt", "plain"]
    found = adapter.main([*options, "--shots", "4", "--confirm", "0"])
    assert found.table.scores.shape[0] == LAYERS
    assert str(found) in capsys.readouterr().out


def test_main_reads_a_benchmark(adapter, folder, tmp_path, capsys):
    file = science_qa(tmp_path / "validation.parquet", 12)
    options = ["--model", str(folder), "--benchmark", "scienceqa", "--task", "maps", "--source", str(file)]
    found = adapter.main([*options, "--shots", "4", "--confirm", "4"])
    assert found.table.scores.shape[0] == LAYERS
    assert str(found) in capsys.readouterr().out


def test_a_benchmark_says_how_its_answers_are_asked_for_and_read(family, vlm):
    from examples.vlm_adapters import _common

    options = _common.parser(None, "").parse_args(["--scorer", "generate", "--prompt", "vlmevalkit"])
    score = _common.scorer(*vlm, options)
    declared = benchmark("scienceqa")
    assert (score.extract, score.max_new_tokens) == (declared.extractor, declared.max_new_tokens)
    assert score.prompt(samples(1)[0]) == prompt_template("vlmevalkit", family=HARNESS_NAMES[family])(samples(1)[0])


def science_qa(path, count):
    """Rows of ScienceQA's layout, every other one of them on maps."""
    from datasets import Dataset, Features, Image, List, Value

    text, number = Value("string"), Value("int8")
    names = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = {"image": Image(), "choices": List(text), "answer": number, **dict.fromkeys(names, text)}
    rows = [
        {
            **dict.fromkeys(names, ""),
            "question": sample.question,
            "choices": list(sample.options),
            "answer": sample.answer,
            "image": sample.images[0],
            "topic": "geography",
            "category": ("Maps", "State capitals")[position % 2],
        }
        for position, sample in enumerate(samples(2 * count, images=lambda _: 1))
    ]
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "internvl", "internvl2_remote"])
def test_each_is_a_program_that_explains_itself(name, tmp_path):
    ended = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    said = "".join(ended.stdout.split())  # argparse breaks ids at their hyphens
    assert "--benchmark" in said
    assert importlib.import_module(f"examples.vlm_adapters.{name}").OFFICIAL_ID in said
