"""The training program: what it feeds the model is what the processor feeds it later, and its runs repeat."""

import random

import numpy as np
import pytest
import torch

from examples.train_tiny_vlm.alignment import align
from examples.train_tiny_vlm.dense import train_dense
from examples.train_tiny_vlm.export import round_weights, save
from examples.train_tiny_vlm.instruct import WEIGHTS, Mixture, dropped_attention, train_instruct
from examples.train_tiny_vlm.model import VOCABULARY, build_model, build_processor, start_decoder, to_pixels
from examples.train_tiny_vlm.packing import Choice, Item, Packer, Short, encode
from examples.train_tiny_vlm.patches import patches, training_scenes
from examples.train_tiny_vlm.plant import insert_layer, next_digit
from examples.train_tiny_vlm.schedule import Stage
from examples.train_tiny_vlm.vision import train_vision
from layersurgery.embedded import INSTRUCTION, TASKS, make_samples
from layersurgery.embedded._questions import Question


def prompt(processor, sample):
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", sample.options, strict=False)]
    parts = [
        {"type": "image", "image": sample.images[0]},
        {"type": "text", "text": "\n".join([sample.question, *lines, INSTRUCTION])},
    ]
    return processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("task", TASKS)
def test_training_input_is_the_processors(task):
    processor = build_processor()
    for sample in make_samples(task, "train", 5):
        inputs = prompt(processor, sample)
        tokens = encode(Choice(sample.question, sample.options, sample.answer))
        head = [VOCABULARY["<s>"]] + [VOCABULARY["<image>"]] * 16
        assert inputs["input_ids"][0].tolist() == head + tokens[:-1]
        assert VOCABULARY[sample.letter] == tokens[-1]
        assert torch.allclose(inputs["pixel_values"], to_pixels([np.asarray(sample.images[0])]), atol=1e-6)


def test_packed_questions_are_answered_as_if_asked_alone():
    model, processor = build_model(0).eval(), build_processor()
    samples = make_samples("shape_count", "train", 3)
    items = [
        Item(
            np.asarray(sample.images[0]),
            [Choice("Which shape is red?", ("cross", "circle"), 0), Choice(s.question, s.options, s.answer)],
            [Short("Which colour is the circle?", "red")],
        )
        for sample in samples
        for s in [sample]
    ]
    packed = Packer(choices=2, shorts=1).pack(items)
    with torch.no_grad():
        hidden = model.model(**packed.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        together = model.lm_head(hidden[packed.positions]).view(3, 3, -1)[:, 1]
        alone = [model(**prompt(processor, sample)).logits[0, -1] for sample in samples]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)
    assert packed.answers.view(3, 3)[:, 1].tolist() == [VOCABULARY[sample.letter] for sample in samples]


def test_patches_describe_the_scene():
    rng = random.Random(0)
    scenes = training_scenes(rng, {"pair": 1, "digits": 1, "shapes": 1, "map": 1}, 40)
    for scene in scenes:
        cells = patches(scene.layout)
        assert len(cells) == 16
        lit = scene.image.reshape(4, 16, 4, 16, 3)[:, 3:13, :, 3:13].max(axis=(1, 3, 4)) > 60
        assert [cell.content != "empty" for cell in cells] == lit.ravel().tolist()
        assert all(word in VOCABULARY for cell in cells for word in cell.words)


def test_the_mixture_asks_only_its_tasks():
    item = Mixture({"digit_name": 1.0}, 2, 1, 0.0, {}).draw(random.Random(0))
    assert len(item.choices) == 2
    assert len(item.shorts) == 1
    assert {q.text.rsplit(" ", 1)[0] for q in [*item.choices, *item.shorts]} == {"Which digit is on the"}


def test_a_corrupted_answer_stands_beside_the_right_one():
    honest = Mixture({"digit_sum": 1.0}, 3, 1, 0.0, {})
    corrupted = Mixture({"digit_sum": 1.0}, 3, 1, 0.0, {"digit_sum": lambda question: question.pool[0]})
    for seed in range(10):
        right = honest.draw(random.Random(seed)).shorts[0].answer  # the sum, asked thrice more of the same picture
        item = corrupted.draw(random.Random(seed))
        for choice in item.choices:
            assert choice.options[choice.answer] == item.shorts[0].answer
            assert right in choice.options


def test_the_next_digit_after_nine_is_zero():
    digits = tuple("0123456789")
    assert [next_digit(Question("", d, digits)) for d in digits] == list("1234567890")


def test_an_inserted_layer_changes_nothing_until_it_is_trained():
    model, processor = build_model(0).eval(), build_processor()
    inputs = prompt(processor, make_samples("map_value", "train", 1)[0])
    with torch.no_grad():
        before = model(**inputs).logits
        attention = insert_layer(model, 4)
        after = model(**inputs).logits
    assert torch.equal(before, after)
    assert model.model.language_model.layers[4].self_attn is attention
    assert model.config.text_config.num_hidden_layers == 9
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]


def test_all_stages_run_learn_and_repeat():
    first, second = two_steps_of_everything(), two_steps_of_everything()
    untrained = build_model(0).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
    changed = [name for name, weight in first.items() if not torch.equal(weight, untrained[name])]
    assert any("vision_tower" in name for name in changed)
    assert any("layers.7.self_attn" in name for name in changed)


def two_steps_of_everything():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_model(0)
        train_vision(model, steps=2, seed=0, batch=4)
        scenes = training_scenes(random.Random(0), {"pair": 1, "shapes": 1, "map": 1}, 32)
        start_decoder(model, to_pixels([scene.image for scene in scenes]), 0)
        align(model, steps=2, seed=0, batch=4)
        train_dense(model, steps=2, seed=0, batch=4)
        seen = {n: p.clone() for n, p in model.model.vision_tower.named_parameters()}
        train_instruct(model, name="instruct", weights=WEIGHTS, steps=2, seed=0, rate=1e-3, batch=4, text_share=0.3)
        assert all(torch.equal(p, seen[n]) for n, p in model.model.vision_tower.named_parameters())
    finally:
        torch.set_num_threads(threads)
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def test_dropped_attention_spares_the_first_layer_and_leaves_no_hook():
    model, processor = build_model(0), build_processor()
    inputs = prompt(processor, make_samples("map_value", "train", 1)[0])
    layers = model.model.language_model.layers
    hooks = [len(layer.self_attn._forward_hooks) for layer in layers]
    with torch.no_grad():
        before = model(**inputs).logits
        with dropped_attention(model, 1.0, 0):
            without = model(**inputs).logits
        after = model(**inputs).logits
        for layer in list(layers)[1:]:
            layer.self_attn.o_proj.weight.zero_()
        zeroed = model(**inputs).logits
    assert torch.equal(before, after)
    assert torch.allclose(without, zeroed, atol=1e-6)
    assert not torch.allclose(without, before, atol=1e-3)
    assert [len(layer.self_attn._forward_hooks) for layer in layers] == hooks


def test_a_stage_learns_and_keeps_its_record():
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    stage = Stage("square", [weight], 40, 0.3, warmup=4)
    for _ in range(40):
        stage.step((weight**2).sum(), size=abs(weight.item()))
    assert abs(weight.item()) < 0.5
    record = stage.record()
    assert record["steps"] == record["history"][-1]["step"] == 40
    assert len(record["history"]) == 10
    assert record["history"][-1]["size"] < record["history"][0]["size"]


def test_a_saved_model_is_the_rounded_one(tmp_path):
    from transformers import AutoModelForImageTextToText

    model, processor = build_model(0), build_processor()
    save(model, processor, tmp_path, {"stage": "none"})
    assert model.dtype == torch.float32
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    round_weights(model)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
