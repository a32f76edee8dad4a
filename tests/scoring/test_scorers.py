"""What both scorers share: bad input, nothing changed, the last call's inputs kept, settings told apart."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from PIL import Image

from layersurgery.errors import SampleError, ScoringError
from layersurgery.scoring import ChoiceScorer, GenerationScorer, _last_call, judge, prompt_template
from layersurgery.scoring._images import load_images
from layersurgery.tasks import Sample
from tests.scoring import tiny

SCORERS = [ChoiceScorer, GenerationScorer]
both = pytest.mark.parametrize("scorer", SCORERS)


def with_images(number):
    return (tiny.picture(number),)


# Bad input


@both
def test_no_samples(scorer):
    with pytest.raises(SampleError, match="no samples to score"):
        scorer(tiny.tokenizer())(tiny.llama(), [])


@both
@pytest.mark.parametrize("wrong", [{"question": "Which?"}, "Which?", None, 3])
def test_things_that_are_no_samples(scorer, wrong):
    with pytest.raises(
        SampleError, match=rf"samples\[1\] is .*{type(wrong).__name__}.*takes layersurgery.tasks.Sample"
    ):
        scorer(tiny.tokenizer())(tiny.llama(), [tiny.samples(1)[0], wrong])


@both
def test_a_single_sample(scorer):
    with pytest.raises(SampleError, match="put it in a list"):
        scorer(tiny.tokenizer())(tiny.llama(), tiny.samples(1)[0])


def test_an_answer_outside_the_options():
    with pytest.raises(SampleError, match="answer 2 is not one of its 2 options"):
        Sample("q", "Which?", ("red", "grey"), 2)


@both
def test_a_model_in_training_mode(scorer):
    with pytest.raises(ScoringError, match=r"LlamaForCausalLM is in training mode.*model\.eval\(\)"):
        scorer(tiny.tokenizer())(tiny.llama().train(), tiny.samples(1))


@both
def test_a_part_in_training_mode(scorer):
    model = tiny.llama()
    model.model.layers[1].self_attn.train()
    with pytest.raises(ScoringError, match=r"'model\.layers\.1\.self_attn' is in training mode"):
        scorer(tiny.tokenizer())(model, tiny.samples(1))
    assert not model.training
    assert model.model.layers[1].self_attn.training


@both
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"batch_size": True}, "True"),
    ],
)
def test_bad_batch_sizes(scorer, settings, complaint):
    with pytest.raises(ScoringError, match=complaint):
        scorer(tiny.tokenizer(), **settings)


@both
@pytest.mark.parametrize("processor", ["a/model", None, len])
def test_things_that_are_no_processors(scorer, processor):
    with pytest.raises(ScoringError, match="give a Hugging Face processor"):
        scorer(processor)


def test_other_bad_settings():
    with pytest.raises(ScoringError, match="candidates is 'words'; give 'letters' or 'options'"):
        ChoiceScorer(tiny.tokenizer(), candidates="words")
    with pytest.raises(ScoringError, match="max_new_tokens is 0"):
        GenerationScorer(tiny.tokenizer(), max_new_tokens=0)
    with pytest.raises(ScoringError, match="unknown rule 'letter'; did you mean 'letters-v1'"):
        GenerationScorer(tiny.tokenizer(), extract="letter")
    with pytest.raises(ScoringError, match="extract is 3; give the name of a rule"):
        GenerationScorer(tiny.tokenizer(), extract=3)


@both
def test_a_prompt_that_is_no_text(scorer):
    with pytest.raises(ScoringError, match="prompt returned 3 for sample 'q0'"):
        scorer(tiny.tokenizer(), prompt=lambda sample: [sample.question, 3])(tiny.llama(), tiny.samples(1))


@both
def test_images_for_a_tokenizer(scorer):
    with pytest.raises(SampleError, match=r"'q0' has 1 image\(s\), but .* takes text only.*AutoProcessor"):
        scorer(tiny.tokenizer())(tiny.llama(), tiny.samples(1, with_images))


@both
def test_images_for_a_text_model(scorer):
    with pytest.raises(ScoringError, match="LlamaForCausalLM takes none"):
        scorer(tiny.llava_processor())(tiny.llama(), tiny.samples(1, with_images))


@both
def test_missing_and_broken_image_files(scorer, tmp_path):
    missing, broken = tmp_path / "missing.png", tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for path in (missing, str(broken)):
        samples = [*tiny.samples(1), Sample("seen", "Which?", ("red", "grey"), 0, (path,))]
        with pytest.raises(
            SampleError, match=f"'seen': cannot read the image .*{'missing' if path == missing else 'broken'}"
        ):
            scorer(tiny.llava_processor())(tiny.llava(), samples)
    with pytest.raises(SampleError, match="'seen' has an image of type int"):
        scorer(tiny.llava_processor())(tiny.llava(), [Sample("seen", "Which?", ("red", "grey"), 0, (3,))])


@both
def test_more_images_than_the_prompt_has_places_for(scorer):
    processor = tiny.llava_processor(chat_template="{{ 'no place for images' }}")
    with pytest.raises(ScoringError, match="LlavaProcessor refused sample 'q0'"):
        scorer(processor)(tiny.llava(), tiny.samples(1, with_images))


# Images


def test_paths_are_opened_as_the_pictures_they_hold(tmp_path):
    model, scorer = tiny.llava(), ChoiceScorer(tiny.llava_processor())
    samples, stored = tiny.samples(3, with_images), []
    for number, sample in enumerate(samples):
        path = tmp_path / f"{number}.png"
        sample.images[0].save(path)
        stored.append(
            Sample(sample.id, sample.question, sample.options, sample.answer, (path if number else str(path),))
        )
    margin = scorer(model, samples).margin
    np.testing.assert_array_equal(scorer(model, stored).margin, margin)
    assert not np.allclose(scorer(model, tiny.samples(3)).margin, margin)  # the pictures do matter


def test_pictures_of_other_modes_are_made_rgb():
    model, scorer = tiny.llava(), ChoiceScorer(tiny.llava_processor())
    grey = tiny.picture(0).convert("L")
    found = [
        scorer(model, [Sample("q", "Which?", ("red", "grey"), 0, (picture,))]).margin[0]
        for picture in (grey, grey.convert("RGB"), grey.convert("RGB").convert("RGBA"), grey.convert("P"))
    ]
    assert found == pytest.approx([found[0]] * 4)


def test_without_a_chat_template_images_stand_before_the_text():
    processor, model = tiny.llava_processor(), tiny.llava()
    sample = tiny.samples(1, with_images)[0]
    plain = ChoiceScorer(tiny.llava_processor(chat_template=None))(model, [sample])
    processor.chat_template = "{{ '<image>\n' + messages[0]['content'][1]['text'] + '\nAnswer:' }}"
    np.testing.assert_allclose(plain.margin, ChoiceScorer(processor)(model, [sample]).margin, atol=1e-5)


# Nothing changes


def snapshot(processor, model):
    tokenizer = getattr(processor, "tokenizer", processor)
    return {
        "backend": tokenizer.backend_tokenizer.to_str(),
        "tokenizer": {k: copy.copy(v) for k, v in vars(tokenizer).items() if k != "_tokenizer"},
        "template": processor.chat_template,
        "config": model.config.to_dict(),
        "generation": (id(model.generation_config), model.generation_config.to_dict()),
        "modes": [part.training for part in model.modules()],
        "hooks": [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()],
        "parameters": [(id(p), p.data_ptr(), p._version, p.requires_grad, p.grad) for p in model.parameters()],
        "attributes": sorted(vars(model)),
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "grad": torch.is_grad_enabled(),
    }


@both
@pytest.mark.parametrize("family", ["llava", "gpt2"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed(scorer, family, fails, monkeypatch):
    """Not even where the tokenizer comes with padding and truncation switched on, or the model fails half-way."""
    processor, model = (
        (tiny.llava_processor(), tiny.llava()) if family == "llava" else (tiny.tokenizer(pad=False), tiny.gpt2())
    )
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left" if scorer is ChoiceScorer else "right"
    tokenizer.backend_tokenizer.enable_padding(length=60, direction="right", pad_id=7, pad_token="x")
    tokenizer.backend_tokenizer.enable_truncation(5, stride=1)
    samples = tiny.samples(5, with_images if family == "llava" else lambda number: ())
    scorer(tiny.llava_processor() if family == "llava" else tiny.tokenizer(pad=False))(model, samples)  # warm-up
    head, calls = model.lm_head.forward, []
    if fails:

        def fail(hidden):
            calls.append(hidden)
            if len(calls) > 1:
                raise RuntimeError("out of memory")
            return head(hidden)

        monkeypatch.setattr(model.lm_head, "forward", fail)
    before = snapshot(processor, model)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            scorer(processor, batch_size=2)(model, samples)
    else:
        scorer(processor, batch_size=2)(model, samples)
    assert snapshot(processor, model) == before


@both
def test_gradients_can_be_taken_before_and_after(scorer):
    model = tiny.llama()
    scorer(tiny.tokenizer())(model, tiny.samples(2))
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@both
def test_an_nnsight_model_scores_as_the_module_in_it(scorer):
    import nnsight

    model, samples = tiny.llama(), tiny.samples(3)
    plain, wrapped = scorer(tiny.tokenizer())(model, samples), scorer(tiny.tokenizer())(nnsight.NNsight(model), samples)
    np.testing.assert_array_equal(plain.correct, wrapped.correct)
    assert (plain.text, str(plain.margin)) == (wrapped.text, str(wrapped.margin))


@both
def test_what_is_put_into_the_model_is_seen(scorer):
    """The same scorer on the same samples, with the model changed in between: only the inputs are kept."""
    model, samples, made = tiny.llama(), tiny.samples(3), scorer(tiny.tokenizer())
    before = made(model, samples)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    after, fresh = made(model, samples), scorer(tiny.tokenizer())(model, samples)
    assert (before.text, str(before.margin)) != (after.text, str(after.margin))
    assert (fresh.text, str(fresh.margin)) == (after.text, str(after.margin))


# The last call's inputs


@pytest.fixture
def processed(monkeypatch):
    """The questions that went through the processor, in order."""
    from layersurgery.scoring import _inputs

    seen, prepare = [], _inputs.prepare
    monkeypatch.setattr(
        _inputs,
        "prepare",
        lambda processor, sample, *args, **kw: seen.append(sample.id) or prepare(processor, sample, *args, **kw),
    )
    return seen


@both
def test_the_same_samples_are_processed_once(scorer, processed):
    model, made, samples = tiny.llava(), scorer(tiny.llava_processor(), batch_size=2), tiny.samples(5, with_images)
    first = made(model, samples)
    again = made(model, list(samples))
    assert sorted(processed) == [sample.id for sample in samples]
    np.testing.assert_array_equal(first.correct, again.correct)
    assert first.text == again.text


@both
def test_other_objects_are_processed_anew(scorer, processed):
    """Equal samples may have other images: identity decides, and order."""
    model, made, samples = tiny.llava(), scorer(tiny.llava_processor()), tiny.samples(3, with_images)
    others = tiny.samples(3, lambda number: (tiny.picture(number + 50),))
    assert others == samples
    first = made(model, samples)
    for changed in (others, samples[:2], samples[::-1]):
        processed.clear()
        scores = made(model, changed)
        assert len(processed) == len(changed)
    assert scores.correct.tolist() == first.correct.tolist()[::-1]


@both
def test_an_interrupted_call_is_not_taken_for_a_whole_one(scorer, processed, monkeypatch):
    model, made, samples = tiny.llama(), scorer(tiny.tokenizer(), batch_size=2), tiny.samples(5)
    with monkeypatch.context() as patch:
        patch.setattr(model.lm_head, "forward", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(model, samples)
    assert len(made(model, samples)) == 5


@both
def test_what_is_too_large_is_not_kept(scorer, processed, monkeypatch):
    monkeypatch.setattr(_last_call, "CACHE_BYTES", 2000)
    model, made, samples = tiny.llama(), scorer(tiny.tokenizer(), batch_size=2), tiny.samples(8)
    first, again = made(model, samples), made(model, samples)
    assert len(processed) == 16
    assert made._last._batches == []
    np.testing.assert_array_equal(first.correct, again.correct)


def test_encoder_decoders_and_decoders_do_not_share_inputs():
    made, samples = ChoiceScorer(tiny.tokenizer()), tiny.samples(3)
    made(tiny.llama(), samples)
    np.testing.assert_array_equal(
        made(tiny.t5(), samples).margin, ChoiceScorer(tiny.tokenizer())(tiny.t5(), samples).margin
    )


@both
def test_copies_and_pickles_score_alike_and_leave_the_inputs_behind(scorer):
    model, made, samples = tiny.llama(), scorer(tiny.tokenizer()), tiny.samples(3)
    scores = made(model, samples)
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other._last._batches == []
        assert other.fingerprint == made.fingerprint
        np.testing.assert_array_equal(other(model, samples).correct, scores.correct)


# Settings


@both
def test_scorers_cannot_be_changed(scorer):
    made = scorer(tiny.tokenizer())
    with pytest.raises(FrozenInstanceError):
        made.batch_size = 3
    assert made.batch_size == 16


def test_reprs():
    assert repr(ChoiceScorer(tiny.llava_processor(), batch_size=3)) == (
        "ChoiceScorer(LlavaProcessor, batch_size=3, candidates='letters')"
    )
    assert repr(GenerationScorer(tiny.llava_processor())) == (
        "GenerationScorer(LlavaProcessor, extract='letters-v1', max_new_tokens=16, batch_size=16)"
    )


def first_letter(text, sample):
    return judge(text[:1], sample)


class Shots:
    """A prompt with a setting; says itself what it depends on."""

    def __init__(self, shots):
        self.shots = shots

    def __call__(self, sample):
        return "\n".join([*["An example."] * self.shots, sample.question])

    @property
    def fingerprint(self):
        return f"shots={self.shots}"


def ending(text):
    return lambda sample: sample.question + text


def test_fingerprints_tell_apart_what_changes_results():
    tokenizer = tiny.tokenizer()
    made = [
        ChoiceScorer(tokenizer),
        ChoiceScorer(tokenizer, candidates="options"),
        ChoiceScorer(tokenizer, prompt=lambda sample: sample.question),
        ChoiceScorer(tokenizer, prompt=lambda sample: sample.question + "?"),
        ChoiceScorer(tokenizer, prompt=ending("!")),
        ChoiceScorer(tokenizer, prompt=ending(".")),
        ChoiceScorer(tokenizer, prompt=Shots(1)),
        ChoiceScorer(tokenizer, prompt=Shots(2)),
        ChoiceScorer(tiny.tokenizer(chat=tiny.TEXT_CHAT)),
        ChoiceScorer(tiny.llava_processor()),
        ChoiceScorer(tiny.llava_next_processor()),
        GenerationScorer(tokenizer),
        GenerationScorer(tokenizer, max_new_tokens=17),
        GenerationScorer(tokenizer, extract=first_letter),
        GenerationScorer(tokenizer, extract="vlmevalkit-2024"),
        GenerationScorer(tokenizer, prompt=prompt_template("vlmevalkit")),
        GenerationScorer(tokenizer, prompt=prompt_template("vlmevalkit", family="llava")),
        GenerationScorer(tokenizer, prompt=lambda sample: sample.question),
    ]
    assert len({scorer.fingerprint for scorer in made}) == len(made)
    assert all(len(scorer.fingerprint) < 250 for scorer in made)


def test_fingerprints_are_stable():
    def fingerprints(batch_size):
        return [
            ChoiceScorer(tiny.tokenizer(), batch_size=batch_size, prompt=ending("!")).fingerprint,
            GenerationScorer(tiny.llava_processor(), batch_size=batch_size, extract=first_letter).fingerprint,
        ]

    assert fingerprints(1) == fingerprints(16)
    assert all(" at 0x" not in text for text in fingerprints(1))


def test_fingerprints_are_the_same_in_another_process():
    import subprocess
    import sys

    program = (
        "from tests.scoring import tiny, test_scorers as t; from layersurgery.scoring import *;"
        "print(ChoiceScorer(tiny.llava_processor(), prompt=t.ending('!')).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ChoiceScorer(tiny.llava_processor(), prompt=ending("!")).fingerprint


def test_pictures_that_are_files_in_memory_stay_so():
    """Pixels are kept by a picture once it is decoded: of thousands of samples, gigabytes."""
    file = io.BytesIO()
    tiny.picture(0, (40, 30)).save(file, "PNG")
    lazy = Image.open(io.BytesIO(file.getvalue()))
    sample = Sample("q", "Which?", ("red", "grey"), 0, (lazy,))
    for _ in range(2):
        shown = load_images(sample)[0]
        assert np.array_equal(np.asarray(shown), np.asarray(tiny.picture(0, (40, 30)).convert("RGB")))
        assert lazy.fp is not None
