"""The shipped models: small, loadable as any other, as good as their record says, with the layers that it names."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from examples.measure_tiny_vlm import answers, summarise
from layersurgery.embedded import CHECKPOINTS, INSTRUCTION, TASKS, checkpoint_path, load, make_samples
from layersurgery.errors import TaskError

loaded = cache(load)


def record(name):
    return json.loads((checkpoint_path(name) / "run.json").read_text(encoding="utf-8"))


@cache
def table(name, task, n):
    model, processor = loaded(name)
    return answers(model, processor, make_samples(task, "test", n))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_at_most_three_megabytes(name):
    assert sum(file.stat().st_size for file in checkpoint_path(name).iterdir()) <= 3e6


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_auto_classes_read_the_plain_folder(name):
    folder = checkpoint_path(name)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.tokenizer.padding_side == "left"


def test_load_gives_an_evaluated_float32_model_and_leaves_the_settings_alone():
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    try:
        model, _ = load("planted")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bar
    finally:
        logging.set_verbosity(verbosity)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_load_is_silent(capfd):
    load("natural")
    assert capfd.readouterr() == ("", "")


def test_an_unknown_checkpoint_is_named_with_its_neighbour():
    with pytest.raises(TaskError, match=r"no embedded checkpoint 'natral': did you mean 'natural'"):
        load("natral")
    with pytest.raises(TaskError, match=r"give one of 'natural', 'planted'"):
        checkpoint_path("zzz")


def test_every_word_of_every_sample_is_known():
    _, processor = loaded("natural")
    unknown = processor.tokenizer.unk_token_id
    for task in TASKS:
        for sample in make_samples(task, "probe", 40):
            lines = [f"{letter}. {option}" for letter, option in zip("ABCD", sample.options, strict=False)]
            text = "\n".join([sample.question, *lines, INSTRUCTION])
            assert unknown not in processor.tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_generation_gives_one_letter_and_stops(name):
    model, processor = loaded(name)
    for task in ("shape_colour", "shape_size"):
        sample = make_samples(task, "test", 1)[0]
        lines = [f"{letter}. {option}" for letter, option in zip("ABCD", sample.options, strict=False)]
        parts = [
            {"type": "image", "image": sample.images[0]},
            {"type": "text", "text": "\n".join([sample.question, *lines, INSTRUCTION])},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert new[-1] == model.generation_config.eos_token_id
        assert processor.tokenizer.decode(new[:-1]) in "ABCD"[: len(sample.options)]


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("task", ["shape_colour", "shape_count", "digit_name"])
def test_accuracies_are_those_of_the_record(name, task):
    """Within four standard errors of a difference between the record's and these samples."""
    measured = 100 * table(name, task, 200)[0].mean()
    stated = record(name)["test"]["tasks"][task]["base"]
    error = 100 * np.sqrt(max(0.01, stated / 100 * (1 - stated / 100)) / 200)
    assert measured == pytest.approx(stated, abs=4 * error)


def test_zeroing_the_planted_layer_gives_the_task_back():
    plant = record("planted")["plant"]
    before, after = table("planted", plant["task"], 200)[[0, 1 + plant["layer"]]].mean(axis=1)
    assert before < 0.15
    assert after > before + 0.5


def test_zeroing_the_natural_layer_gains_significantly():
    """On test samples that took no part in choosing the checkpoint; exact paired test on five hundred."""
    named = record("natural")["narrow"]["clearest"]
    before, after = table("natural", named["task"], 500)[[0, 1 + named["layer"]]]
    won, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    assert won > lost
    assert binomtest(won, won + lost).pvalue < 1e-3


def test_measuring_leaves_the_model_as_it_was():
    model, processor = loaded("natural")
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    answers(model, processor, make_samples("digit_sum", "test", 3))
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_holm_and_mcnemar_on_a_table_worked_by_hand():
    """Ten samples won and none lost: p = 2 / 2^10; three cells in all, so that times 3; no change: p = 1."""
    samples = {"digit_sum": make_samples("digit_sum", "test", 12)}
    base = np.arange(12) < 2
    rows = summarise(samples, {"digit_sum": np.stack([base, np.ones(12, bool), base, ~base])})
    assert rows[0].base == pytest.approx(100 * 2 / 12)
    assert rows[0].change == pytest.approx([100 * 10 / 12, 0, 100 * 8 / 12])
    losses = 2 * sum([1, 12, 66]) / 2**12  # ten won against two lost, two-sided
    assert rows[0].p == pytest.approx([3 * 2 / 2**10, 1, 2 * losses])
    assert rows[0].verdict == "gain"
