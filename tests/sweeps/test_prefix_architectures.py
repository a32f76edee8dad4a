"""A shared prefix on classes of transformers: every tensor that each of them gives, bit for bit.

`python -m tests.sweeps.test_prefix_architectures vlm/llava causal` prints a line for each class; with `--scored` before
the names, of calls that ask for the logits of the last position only.
"""

from __future__ import annotations

import inspect
import sys
import time

import pytest
import torch

import layersurgery as ls
from layersurgery.errors import SelectionError
from layersurgery.sweeps import _prefix_tail
from layersurgery.sweeps._prefix import SharedPrefix
from tests.architectures.build import build, names
from tests.architectures.expected import REFUSED
from tests.architectures.inputs import inputs
from tests.architectures.subject import same_chance
from tests.sweeps.test_prefix import check

# What is computed in full for each variant, and why.
IN_FULL = {
    "causal/musicgen": "it draws random numbers with Python's or numpy's generator",
    "causal/musicgen_melody": "it draws random numbers with Python's or numpy's generator",
    "causal/recurrent_gemma": "its state changes in each call",
    "causal/rwkv": "it writes into what it is given",
}

# A cross-section: towers, side inputs, mixtures, state spaces, shared weights, encoders, and what is odd elsewhere.
SOME = [
    "vlm/gemma3n",
    "vlm/idefics",
    "vlm/kosmos-2",
    "vlm/llava_next",
    "vlm/mllama",
    "vlm/qwen2_vl",
    "vlm/qwen3_vl",
    "causal/bamba",
    "causal/cohere2",
    "causal/falcon_h1",
    "causal/gemma2",
    "causal/gpt_oss",
    "causal/mamba",
    "causal/mixtral",
    "causal/openai-gpt",
    "causal/recurrent_gemma",
    "causal/rwkv",
    "causal/zamba2",
    "other/albert",
    "other/bart",
    "other/t5",
    "other/whisper",
]


def left_of(name, role="attention", most=5, scored=False):
    """The share of operations that are left, what is said about the rest, and which modules compute few positions."""
    model, given = build(name), inputs(name)
    if scored:
        given["logits_to_keep"] = 1

    @torch.no_grad()
    def run(model):
        with same_chance():
            return model(**given)

    run(model)  # transformers installs hooks of its own at some models' first forward
    sites = ls.select(model, role)
    spread = sorted({round(number * (len(sites) - 1) / (most - 1)) for number in range(most)})
    prefix = SharedPrefix(model, sites)
    do = ls.Uniform() if role == "layer" else ls.Zero()
    chosen = [sites[number] for number in spread]
    left = check(model, run, chosen, lambda site: ls.Surgery(at=site, do=do), prefix, snapshot=False)
    paths = {module: path for path, module in model.named_modules()}
    few = sorted(paths[module] for module in prefix._tail.modules) if prefix.tail else []
    return left, prefix.notes, few


def takes_positions(name):
    """Whether a class can be asked for the logits of some positions only."""
    return "logits_to_keep" in inspect.signature(build(name).forward).parameters


def _check(name, role, most):
    left, notes, _ = left_of(name, role, most)
    if name in IN_FULL:
        assert any(IN_FULL[name] in note for note in notes)
    else:
        assert left < 1
        assert all("from the second batch on" in note for note in notes)


@pytest.mark.parametrize("name", SOME)
def test_some_classes(name):
    _check(name, "attention", 3)


@pytest.mark.parametrize("name", ["vlm/llava_next", "causal/gemma2", "causal/cohere2"])
def test_scored_positions(name, monkeypatch):
    """Of the last layer, what only the last position needs: queries, what attention gives, and the feed-forward."""
    monkeypatch.setattr(_prefix_tail.Tail, "fewest", 4)
    left, _, few = left_of(name, most=4, scored=True)
    assert left < 1
    parts = {path.rpartition(".")[2] for path in few}
    assert {"q_proj", "o_proj"} <= parts
    # Whether a product of few rows comes out the same to the last bit is for the processor to say.
    assert "mlp" in parts or {"gate_proj", "up_proj"} <= parts
    assert not parts & {"k_proj", "v_proj"}
    assert len({path.rpartition(".layers.")[2].partition(".")[0] for path in few}) == 1


@pytest.mark.parametrize("name", ["causal/qwen3_moe", "vlm/kimi_k25"])
def test_all_positions_count_where_experts_are_chosen(name, monkeypatch):
    """Which rows an expert computes at once, and so how it rounds, depends on all of them."""
    monkeypatch.setattr(_prefix_tail.Tail, "fewest", 4)
    assert left_of(name, most=4, scored=True)[2] == []


@pytest.mark.slow
@pytest.mark.parametrize("role", ["attention", "mlp", "layer"])
@pytest.mark.parametrize("name", [name for name in names() if name not in REFUSED])
def test_all_classes(name, role):
    try:
        _check(name, role, 6)
    except SelectionError:
        if role == "attention":
            raise
        pytest.skip(f"no site of role {role}")


def main() -> int:
    """A line for each class whose name begins as asked."""
    wrong = 0
    scored = sys.argv[1:2] == ["--scored"]
    if scored:
        _prefix_tail.Tail.fewest = 4
    for name in (name for name in names() if name.startswith(tuple(sys.argv[1 + scored :]) or "")):
        if scored and not takes_positions(name):
            continue
        began = time.perf_counter()
        try:
            left, notes, few = left_of(name, scored=scored)
            line = f"{100 * left:4.0f} % of the operations left  {'; '.join(notes)}  {' '.join(few)}"
        except SelectionError:
            line = "no sites"
        except AssertionError as error:
            wrong, line = wrong + 1, f"WRONG at {error}"
        sys.stdout.write(f"{name:32} {time.perf_counter() - began:5.1f} s  {line}\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
