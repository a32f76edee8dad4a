"""The adapter for InternVL2's own code, on a tiny checkpoint that brings code with the same interface."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import layersurgery as ls
from examples.vlm_adapters import internvl2_remote as adapter
from layersurgery.testing import restored
from tests.with_torchvision import remote_code
from tests.with_torchvision.checkpoints import LAYERS
from tests.with_torchvision.questions import picture, samples, write_file
from tests.with_torchvision.test_search import legible


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoint; transformers keeps its copy of the code beside it, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield remote_code.build(tmp_path_factory.mktemp("internvl2"))


@pytest.fixture(scope="module")
def loaded(folder):
    return adapter.load(folder, dtype="float32")


def test_the_code_in_the_folder_is_what_runs(loaded):
    model, tokenizer = loaded
    assert type(model).__module__.startswith("transformers_modules.")
    assert model.config.model_type == "internvl_chat"
    assert not model.training
    assert len(tokenizer) == model.config.llm_config.vocab_size


def test_the_dtype_is_the_one_that_is_asked_for(folder, loaded):
    assert loaded[0].dtype == torch.float32
    model, tokenizer = adapter.load(folder)
    assert model.dtype == torch.bfloat16
    assert len(adapter.ChatScorer(tokenizer, max_new_tokens=2)(model, samples(3))) == 3


def test_the_sites_are_those_of_the_language_model(loaded):
    sites = ls.select(loaded[0])
    assert sites.paths == tuple(f"language_model.model.layers.{layer}.self_attn" for layer in range(LAYERS))


@pytest.mark.parametrize("max_tiles", [1, 4, 6, 12])
def test_images_are_cut_as_transformers_cuts_them_for_this_family(max_tiles):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor, get_optimal_tiled_canvas

    processor = GotOcr2ImageProcessor(
        size={"height": 56, "width": 56},
        crop_to_patches=True,
        max_patches=max_tiles,
        image_mean=adapter._MEAN,
        image_std=adapter._STD,
    )
    for number in range(5):
        image = picture(number)
        columns, rows = adapter.grid(image.width, image.height, max_tiles, 56)
        assert (columns, rows) == get_optimal_tiled_canvas((image.height, image.width), (56, 56), 1, max_tiles)
        tiles = adapter.pixels(image, max_tiles, 56)
        theirs = processor(images=image, return_tensors="pt")["pixel_values"]
        assert tiles.shape == theirs.shape
        # Bicubic shrinking of Pillow and of torchvision: the same picture, not the same to the bit.
        assert (tiles - theirs).abs().mean() < 0.05
        assert tiles.std() > 0.3


def test_a_question_is_put_to_chat_with_its_pictures_in_order(loaded):
    model, tokenizer = loaded
    score = adapter.ChatScorer(tokenizer, max_new_tokens=8)
    [none, one, two] = samples(3)
    text = score.prompt(two)
    assert adapter.message(text, 2)[0].startswith("Image-1: <image>\nImage-2: <image>\n")
    assert adapter.message(score.prompt(one), 1)[0].startswith("<image>\n")
    tiles = [adapter.pixels(image, 6, 56) for image in two.images]
    expected = model.chat(
        tokenizer,
        torch.cat(tiles),
        adapter.message(text, 2)[0],
        {"max_new_tokens": 8, "do_sample": False},
        num_patches_list=[len(part) for part in tiles],
    )
    texts = score(model, [none, one, two]).text
    assert texts[2] == expected
    swapped = replace(two, images=two.images[::-1])
    assert score(model, [swapped]).text != (expected,)


def test_a_sample_with_variants_is_right_where_all_of_them_are(loaded):
    model, tokenizer = loaded
    score = adapter.ChatScorer(tokenizer, max_new_tokens=4)
    sample = replace(samples(2)[1], options=(), kind="open", answer="?")
    said = score(model, [sample]).text[0]
    right, wrong = replace(sample, answer=said), replace(sample, id="other", answer="?")
    assert legible([said]) == [True]
    scores = score(model, [right, replace(right, variants=(right,)), replace(right, variants=(wrong,))])
    assert scores.correct.tolist() == [1, 1, 0]
    assert scores.text[1] == f"{said}\n{said}"


def test_talo_finds_the_layer_that_it_should_and_leaves_the_model_as_it_was(loaded):
    model, tokenizer = loaded
    score = adapter.ChatScorer(tokenizer, max_new_tokens=4)
    questions = [replace(sample, options=(), kind="open", answer="?") for sample in samples(24)]
    with ls.Surgery(at=ls.select(model)[1], do=ls.Zero())(model):
        texts = score(model, questions).text
    answered = [replace(sample, answer=text) for sample, text in zip(questions, texts, strict=True)]
    planted = [sample for sample, right in zip(answered, legible(texts), strict=True) if right]
    assert len(planted) >= 16
    with restored(model):
        found = ls.talo(model, score, planted, rule=ls.PaperRule(5), confirm=6)
    assert found.site.path == "language_model.model.layers.1.self_attn"
    assert found.confirm_score == 1


def test_main_goes_all_the_way(folder, tmp_path, capsys):
    file = write_file(tmp_path, samples(16, images=lambda _: 1))
    options = ["--model", str(folder), "--dtype", "float32", "--data", str(file), "--shots", "3", "--confirm", "4"]
    found = adapter.main([*options, "--output", str(tmp_path / "out")])
    assert str(found) in capsys.readouterr().out
    assert found.table.scores.shape[0] == LAYERS
    if found.surgery is not None:
        assert json.loads((tmp_path / "out" / "surgery.json").read_text())


def test_main_refuses_what_needs_a_processor(folder, capsys):
    with pytest.raises(SystemExit):
        adapter.main(["--model", str(folder), "--scorer", "choices"])
    assert "--scorer choices needs a processor" in capsys.readouterr().err
