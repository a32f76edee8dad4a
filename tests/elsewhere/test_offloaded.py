"""Models whose weights accelerate keeps on the CPU or on disk and brings in for each call."""

from __future__ import annotations

import accelerate
import pytest
import torch
from torch.overrides import TorchFunctionMode

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SurgeryError
from tests import models
from tests.elsewhere.tiny import SILENCE, WEIGHT_FORMS, apply, assert_same, llama, logits, replaced, zeroed


def _cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def _disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def _whole_layers(model, folder):
    """Hooks on the layers, which bring in all that is inside them."""
    kinds = [type(model.model.layers[0]).__name__]
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"), preload_module_classes=kinds)


def _checkpoint(model, folder):
    model.save_pretrained(folder / "saved", max_shard_size="100KB")
    with accelerate.init_empty_weights():
        empty = type(model)(model.config)
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    where |= {f"model.layers.{i}": "disk" for i in range(3)}
    return accelerate.load_checkpoint_and_dispatch(
        empty, str(folder / "saved"), device_map=where, offload_folder=folder / "off", force_hooks=True
    ).eval()


def _transformers(model, folder):
    model.save_pretrained(folder / "saved")
    where = {"model": "disk", "lm_head": "cpu"}
    return type(model).from_pretrained(folder / "saved", device_map=where, offload_folder=folder / "off").eval()


WAYS = [_cpu, _disk, _whole_layers, _checkpoint, _transformers]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.__name__.strip("_"))
def offloaded(request, tmp_path_factory):
    return request.param(llama(), tmp_path_factory.mktemp("offloaded"))


@pytest.fixture(autouse=True)
def all_as_before(request):
    """Each test leaves the weights where they are kept, the hooks and the output as they were.

    Accelerate puts new parameters in the tables in each pass, so that snapshots fit around what runs nothing only.
    """
    if "offloaded" not in request.fixturenames:
        yield
        return
    offloaded = request.getfixturevalue("offloaded")
    before, stored, hooks = logits(offloaded), _stored(offloaded), _all_hooks(offloaded)
    yield
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(_stored(offloaded), stored, strict=True))
    assert _all_hooks(offloaded) == hooks
    assert torch.equal(logits(offloaded), before)
    assert not ls.status(offloaded)


def _stored(model):
    """The bytes of all weights where they really are."""
    found = []
    for path, module in model.named_modules():
        for hook in _hooks(module):
            weights = getattr(hook, "weights_map", None)
            names = [name for name, _ in module.named_parameters(recurse=getattr(hook, "place_submodules", False))]
            found += [(f"{path}.{name}", weights[name].clone()) for name in names if weights is not None]
    assert found
    return found


def _all_hooks(model):
    return [
        (id(module), id(module.forward), [*module._forward_hooks], [*module._forward_pre_hooks])
        for module in model.modules()
        if "forward" in vars(module)
    ]


def _hooks(module):
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else [hook, *getattr(hook, "hooks", ())]


@pytest.mark.parametrize("role", ["attention", "mlp", "layer"])
def test_zero_and_scale_are_exact(offloaded, role):
    plain = llama()
    site, same = ls.select(offloaded, role)[1], ls.select(plain, role)[1]
    assert "offloaded" in site.hazards
    assert all(parameter.is_meta for parameter in offloaded.get_submodule(site.path).parameters())
    for do in (ls.Zero(), ls.Scale(0.5)):
        with testing.restored(offloaded):
            ls.Surgery(at=site, do=do).attach(offloaded).remove()
        wanted = logits(replaced(plain, same, do))
        assert torch.equal(apply(offloaded, site, do), wanted)
        assert not torch.allclose(wanted, logits(plain), atol=1e-3)


def test_what_it_adds(offloaded):
    plain = llama()
    site = ls.select(plain)[1]
    with testing.restored(offloaded):
        ls.Surgery(at=site, do=SILENCE).attach(offloaded).remove()
    assert torch.equal(apply(offloaded, site, SILENCE), logits(zeroed(plain, site)))


@pytest.mark.parametrize("do", WEIGHT_FORMS, ids=str)
def test_what_needs_the_values_is_refused(offloaded, do):
    site = ls.select(offloaded)[0]
    with (
        testing.restored(offloaded),
        pytest.raises(SurgeryError, match=r"q_proj are offloaded.*needs their values.*Zero"),
    ):
        ls.Surgery(at=site, do=do).attach(offloaded)


def test_weights_that_stay_in_memory_are_replaced_as_ever(tmp_path):
    where = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    mixed = accelerate.dispatch_model(
        llama(), {**where, "lm_head": "disk"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    plain = llama()
    site = ls.select(plain)[1]
    assert not ls.select(mixed)[1].hazards
    for do in (ls.Zero(), *WEIGHT_FORMS):
        with testing.restored(mixed):
            ls.Surgery(at=site, do=do).attach(mixed).remove()
        assert_same(apply(mixed, site, do), logits(replaced(plain, site, do)), do)


def test_generation(offloaded):
    plain = llama()
    site = ls.select(plain)[1]
    ids = models.tokens()
    by_hand = zeroed(plain, site).generate(ids, max_new_tokens=4, do_sample=False)
    cut = ls.Surgery(at=site, do=ls.Zero())
    with cut(offloaded):
        assert torch.equal(offloaded.generate(ids, max_new_tokens=4, do_sample=False), by_hand)


def test_slices_and_merging_and_ties_are_refused(offloaded):
    site = ls.select(offloaded)[0]
    with pytest.raises(SurgeryError, match="no change of weights says the same"):
        ls.Surgery(at=site, do=ls.Zero()).merge_(offloaded)
    with pytest.raises(SurgeryError, match=r"tied='everywhere'.*would not change"):
        ls.Surgery(at=site, do=ls.Zero(), tied="everywhere").attach(offloaded)
    rows = ls.Site(site.path, role="attention", slices=(ls.sites.Slice("q_proj.weight", 0, ((0, 2),)),))
    with testing.restored(offloaded), pytest.raises(SurgeryError, match=r"q_proj\.weight is offloaded: a slice"):
        ls.Surgery(at=rows, do=ls.Zero()).attach(offloaded)


def test_a_sweep(offloaded):
    """Spread over main memory and disk: the scores of the plain model, and layers below a site are not brought in."""
    plain = llama()

    def score(model, samples):
        with torch.no_grad():
            return [model(models.tokens(length=sample)).logits[0, -1, 10].item() for sample in samples]

    full = ls.sweep(plain, score, range(4, 10), batch_size=2, share=False)
    sites = ls.select(offloaded)  # which runs a copy without weights
    with Activations() as activations:
        table = ls.sweep(offloaded, score, range(4, 10), at=sites, batch_size=2)
    assert torch.allclose(torch.tensor(table.correct), torch.tensor(full.correct), atol=1e-5)
    assert not table.notes
    base_and_variants, guard = 3 * 2 * (3 + 3 + 2 + 1), 2 * 3
    assert activations.count == base_and_variants + guard


class Activations(TorchFunctionMode):
    """Counts the feed-forwards that really run, by their activation."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.nn.functional.silu
        return func(*args, **(kwargs or {}))
