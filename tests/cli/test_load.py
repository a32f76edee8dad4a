"""Models from folders: what is chosen, what is recorded, and what is said where it cannot be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import layersurgery as ls
from layersurgery.cli._load import ModelError, _suitable, load_empty, load_model
from layersurgery.embedded import checkpoint_path, load
from tests.scoring import tiny

ROOT = Path(__file__).parents[2]


def saved(path, model, processor, **config):
    model.save_pretrained(path)
    processor.save_pretrained(path)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return str(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llama"), tiny.llama(), tiny.tokenizer())


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llava"), tiny.llava(), tiny.llava_processor())


def test_a_text_model(llama):
    loaded = load_model(llama)
    original = tiny.llama()
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert not loaded.model.training
    assert all(torch.equal(one, original.state_dict()[name]) for name, one in loaded.model.state_dict().items())
    assert ls.ChoiceScorer(loaded.processor)(loaded.model, tiny.samples(3)).correct.shape == (3,)


def test_a_model_with_pictures(llava):
    loaded = load_model(llava)
    assert type(loaded.model).__name__ == "LlavaForConditionalGeneration"
    assert type(loaded.processor).__name__ == "LlavaProcessor"
    samples = tiny.samples(2, images=lambda number: (tiny.picture(number),))
    assert ls.ChoiceScorer(loaded.processor)(loaded.model, samples).correct.shape == (2,)


def test_an_encoder_decoder(tmp_path):
    loaded = load_model(saved(tmp_path, tiny.t5(), tiny.tokenizer(closing=True)))
    assert type(loaded.model).__name__ == "T5ForConditionalGeneration"


def test_what_was_loaded_is_recorded(llava):
    import transformers

    record = load_model(llava, dtype="bfloat16").record
    original = tiny.llava()
    count = sum(parameter.numel() for parameter in original.parameters())
    assert json.loads(json.dumps(record.to_dict())) == {
        "name": llava,
        "architecture": "LlavaForConditionalGeneration",
        "dtype": "bfloat16",
        "device": "cuda:0" if torch.cuda.is_available() else "cpu",
        "parameters": count,
        "bytes": record.bytes,
        "revision": None,
        "remote_code": False,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in original.buffers())
    assert 2 * count <= record.bytes <= 2 * count + buffers


def test_a_revision_is_recorded(llama):
    assert load_model(llama, revision="abc").record.revision == "abc"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float32"),  # slow on a CPU, and unsupported in places
        ("float16", "float16", "float16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_dtypes_on_a_cpu(tmp_path, stored, asked, expected, declared):
    """Whether the config says what is stored or only the weights do."""
    dtype = {"dtype": stored if declared else None}
    path = saved(tmp_path, tiny.llama().to(getattr(torch, stored)), tiny.tokenizer(), **dtype)
    for settings in ({"device": "cpu"}, {"device_map": "cpu"}):
        loaded = load_model(path, dtype=asked, **settings)
        assert {str(parameter.dtype) for parameter in loaded.model.parameters()} == {f"torch.{expected}"}
        assert loaded.record.dtype == expected


def test_what_an_accelerator_cannot_compute_in_is_not_asked_of_it(monkeypatch):
    """The choice alone; its three inputs are a dtype, a device and what the device can do."""
    from layersurgery.cli import _load

    for able, expected in ((True, None), (False, torch.float16)):
        monkeypatch.setattr(_load, "_computes_in_bfloat16", lambda device, able=able: able)
        assert _suitable(torch.bfloat16, torch.device("cuda")) == expected
        assert _suitable(torch.float16, torch.device("cuda")) is None
        assert _suitable(torch.bfloat16, torch.device("cpu")) is None
    assert _suitable(torch.float16, torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("device_map", [{"": "cpu"}, '{"": "cpu"}', "auto", "balanced", "sequential", "cpu"])
def test_device_maps(llava, device_map):
    loaded = load_model(llava, device_map=device_map)
    plain = load_model(llava, device="cpu")
    samples = tiny.samples(2, images=lambda number: (tiny.picture(number),))
    scores, expected = (ls.ChoiceScorer(one.processor)(one.model, samples) for one in (loaded, plain))
    assert scores.margin == pytest.approx(expected.margin, abs=1e-4)
    if not torch.cuda.is_available():
        assert loaded.record.device == "cpu"
        assert loaded.record.bytes == plain.record.bytes


def test_a_map_over_several_places_is_summed_up(llama):
    """A layer on the disk, the rest in memory; the weights that stay away count all the same."""
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    places |= {f"model.layers.{layer}": "cpu" if layer else "disk" for layer in range(3)}
    loaded, plain = load_model(llama, device_map=json.dumps(places)), load_model(llama, device="cpu")
    assert loaded.record.device == "cpu (6 modules), disk (1 module)"
    assert (loaded.record.parameters, loaded.record.bytes) == (plain.record.parameters, plain.record.bytes)
    scores, expected = (ls.ChoiceScorer(one.processor)(one.model, tiny.samples(3)) for one in (loaded, plain))
    assert scores.margin == pytest.approx(expected.margin, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float3"}, "unknown dtype 'float3'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "abacus"}, "the device 'abacus' cannot be used"),
        ({"device": "cpu", "device_map": "auto"}, "--device cpu and --device-map auto were both given"),
        (
            {"device_map": "everywhere"},
            "--device-map 'everywhere': give auto, balanced, balanced_low_0, sequential, the",
        ),
        ({"device_map": '{"": '}, "is not JSON"),
        ({"device_map": "{}"}, "is empty"),
        ({"device_map": {"": "abacus"}}, "has the device 'abacus'"),
        ({"device_map": {"": -1}}, "has the device -1"),
        ({"device_map": {"": True}}, "has the device True"),
        ({"device_map": {"": 1.5}}, "has the device 1.5"),
        ({"device_map": 3}, "--device-map 3: give auto"),
    ],
)
def test_settings_that_cannot_be_are_refused(llama, settings, message):
    with pytest.raises(ModelError, match=message):
        load_model(llama, **settings)


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"no model './nowhere': not an embedded one \(natural, planted\)"):
        load_model("./nowhere")
    tiny.llama().config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"the processor of {tmp_path} cannot be loaded"):
        load_model(str(tmp_path))
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path} cannot be loaded: .*no file named"):
        load_model(str(tmp_path))


def test_without_accelerate_a_map_is_refused(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModelError, match=r"--device-map needs accelerate, .* pip install accelerate"):
        load_model(llama, device_map="auto")


def in_a_new_process(code, path, **environment):
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


TRY = """
import sys
from layersurgery.cli._load import ModelError, load_model
try:
    load_model(sys.argv[1])
except ModelError as error:
    print(error)
"""


def test_without_torchvision_the_message_says_what_to_install(tmp_path):
    """In a process of its own: transformers looks for torchvision once, when it is imported."""
    processor = tiny.qwen2_vl_processor()
    tiny.qwen2_vl().save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor_class": "Qwen2VLProcessor"}))
    said = in_a_new_process("import sys; sys.modules['torchvision'] = None" + TRY, tmp_path)
    assert said == (
        f"the processor of {tmp_path} needs torchvision, which is not installed: pip install torchvision (of the same "
        "release as torch)"
    )


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_when_it_is_trusted(tmp_path):
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    saved(tmp_path / "m", tiny.llama(), tiny.tokenizer(), model_type="own_llama", auto_map=classes)
    (tmp_path / "m" / "own.py").write_text(OWN_CODE)
    with pytest.raises(ModelError, match=r"comes with code of its own, .*--trust-remote-code"):
        load_model(str(tmp_path / "m"))
    code = TRY.replace("load_model(sys.argv[1])", "print(load_model(sys.argv[1], trust_remote_code=True).record)")
    said = in_a_new_process(code, tmp_path / "m", HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert "architecture='OwnModel'" in said
    assert "remote_code=True" in said


def test_the_embedded_models():
    loaded = load_model("planted")
    expected, _ = load("planted")
    assert loaded.record.dtype == "float32"  # stored in bfloat16
    assert loaded.record.name == "planted"
    assert all(torch.equal(a.cpu(), b) for a, b in zip(loaded.model.parameters(), expected.parameters(), strict=True))
    assert load_model("natural", dtype="bfloat16", device_map="cpu").record.dtype == "bfloat16"
    assert load_model(str(checkpoint_path("planted"))).record.dtype == "bfloat16"  # a folder as any other


def test_the_model_without_its_weights(llava):
    model = load_empty(llava)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert type(model).__name__ == "LlavaForConditionalGeneration"


def test_image_settings_are_set(llava):
    plain = load_model(llava)
    larger = load_model(llava, image_settings='{"size": {"shortest_edge": 32}, "do_center_crop": false}')
    assert plain.processor.image_processor.size["shortest_edge"] == 16
    assert larger.processor.image_processor.size["shortest_edge"] == 32
    shapes = [
        one.processor.image_processor(tiny.picture(0, (40, 40)), return_tensors="pt")["pixel_values"].shape[-1]
        for one in (plain, larger)
    ]
    assert shapes == [16, 32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{size: 3}", "--image-settings '{size: 3}' is not JSON"),
        ("[1]", r"--image-settings \[1\]: give a JSON object"),
        ('{"sise": 3}', "ImageProcessor.* has no field 'sise'; its fields: .*size"),
        ('{"size": "large"}', "--image-settings .*large.*refused them"),
    ],
)
def test_bad_image_settings(llava, settings, message):
    with pytest.raises(ModelError, match=message):
        load_model(llava, image_settings=settings)


def test_image_settings_of_a_model_without_images(llama):
    with pytest.raises(ModelError, match="takes no images"):
        load_model(llama, image_settings={"size": {"shortest_edge": 32}})
