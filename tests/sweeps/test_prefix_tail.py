"""Where only some positions are scored, the last layer computes few others: the same bits, for less work."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode

import layersurgery as ls
from layersurgery import testing
from layersurgery.sweeps._prefix import SharedPrefix
from layersurgery.sweeps._prefix_attention import FewQueries
from tests import models
from tests.sweeps.test_prefix import same

LENGTH = 64
ATTENTION = nn.functional.scaled_dot_product_attention
SAMPLES = list(range(4))
MANY = list(range(24))


@pytest.fixture
def model():
    return models.fresh("llama")


def tokens(samples):
    rows = [
        torch.randint(10, models.VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(s)) for s in samples
    ]
    return torch.stack(rows)


def padding(samples):
    """The first samples are shorter: their first positions are padding."""
    return torch.stack([(torch.arange(LENGTH) >= 5 * (3 - s)).long() for s in samples])


def scorer(keep=1, *, padded=False, **asked):
    """Log-probabilities of a token at the last of the positions asked for."""

    @torch.no_grad()
    def score(model, samples):
        mask = padding(samples) if padded else None
        output = model(tokens(samples), attention_mask=mask, use_cache=False, logits_to_keep=keep, **asked)
        return output.logits[:, -1].log_softmax(-1)[:, 10].tolist()

    return score


class Rows(TorchFunctionMode):
    """Counts the positions that matrices are multiplied with, by the shape of the matrix; and queries of attention."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is nn.functional.linear:
            self.seen[tuple(arguments[1].shape)] += arguments[0].shape[-2]
        elif function is ATTENTION:
            self.seen["queries"] += arguments[0].shape[-2]
        return function(*arguments, **(keywords or {}))


def positions(model, score):
    sites = ls.select(model)
    with testing.restored(model), Rows() as rows:
        table = ls.sweep(model, score, MANY, at=sites, batch_size=2)
    return rows.seen, table


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([20, LENGTH - 1])], ids=["last", "three", "listed"])
def test_the_same_scores_from_fewer_positions(model, keep):
    full = ls.sweep(model, scorer(keep), MANY, batch_size=2, share=False)
    few, table = positions(model, scorer(keep))
    all_rows, _ = positions(model, scorer(0))  # logits of all positions
    assert np.array_equal(table.correct, full.correct)
    assert table.notes == ()
    wide = tuple(model.model.layers[0].mlp.up_proj.weight.shape)
    assert few[wide] < all_rows[wide]


@pytest.mark.parametrize("padded", [False, True])
def test_attention_for_fewer_queries(model, padded):
    """With torch's causal mask, and with one that is given."""
    sites = ls.select(model)
    few, table = positions(model, scorer(padded=padded))
    all_of_them, _ = positions(model, scorer(0, padded=padded))
    full = ls.sweep(model, scorer(padded=padded), MANY, batch_size=2, share=False)
    assert np.array_equal(table.correct, full.correct)
    assert table.notes == ()
    # all variants but the last, whose attention is knocked out, need 8 of 64 positions in the last layer
    spared = (LENGTH - 8) * (len(sites) - 1) * len(MANY) // 2
    assert 0 < all_of_them["queries"] - few["queries"] <= spared
    assert all_of_them["queries"] - few["queries"] >= spared - 8 * LENGTH  # looking at it, once


def test_which_modules(model):
    sites = ls.select(model)
    prefix = SharedPrefix(model, sites)
    given = {"input_ids": tokens(SAMPLES), "use_cache": False, "logits_to_keep": 1}
    with torch.no_grad():
        with testing.restored(model), prefix.recording():
            model(**given)
        assert prefix.tail
        last, cuts = model.model.layers[-1], []
        assert prefix.tail.modules == {last.self_attn.q_proj, last.self_attn.o_proj, last.mlp}
        for site in [*sites, sites[0]]:
            with ls.Surgery(at=site, do=ls.Zero())(model):
                full = model(**given)
                with prefix.replaying(site):
                    shared = model(**given)
            assert same(full, shared)
            cuts.append(prefix.has_cut)
    assert all(cuts)  # what changes the last layer's attention, too: its feed-forward comes later


OTHERS = [
    ("attention", ls.Uniform()),
    *((role, do) for role in ("mlp", "layer") for do in (ls.Mean(), ls.Noise(seed=1))),
]


@pytest.mark.parametrize(("role", "do"), OTHERS, ids=str)
def test_other_interventions_and_roles(model, role, do):
    settings = {"at": ls.select(model, role), "do": do, "batch_size": 1}
    full = ls.sweep(model, scorer(), MANY, share=False, **settings)
    shared = ls.sweep(model, scorer(), MANY, **settings)
    assert np.array_equal(full.correct, shared.correct)
    assert shared.notes == ()


def test_not_where_the_scorer_looks_at_hidden_states(model):
    """A hook sees all positions, and what is asked for besides the logits holds them."""

    @torch.no_grad()
    def score(model, samples):
        seen = []
        handle = model.model.layers[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            model(tokens(samples), use_cache=False, logits_to_keep=1)
        finally:
            handle.remove()
        return seen[0].double().mean((1, 2)).tolist()

    @torch.no_grad()
    def asking(model, samples):
        output = model(tokens(samples), use_cache=False, logits_to_keep=1, output_hidden_states=True)
        return output.hidden_states[-1].double().mean((1, 2)).tolist()

    for one in (score, asking):
        full = ls.sweep(model, one, MANY, batch_size=1, share=False)
        assert np.array_equal(ls.sweep(model, one, MANY, batch_size=1).correct, full.correct)


@pytest.mark.parametrize("most", [2, 1])
@pytest.mark.parametrize("rounded", [nn.functional.linear, ATTENTION], ids=["products", "attention"])
def test_not_where_rows_depend_on_their_number(model, most, rounded):
    """As on processors whose products of few rows come out otherwise in the last digit, perhaps of some shapes only."""

    class Rounding(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            output = function(*arguments, **(keywords or {}))
            rounds = function is rounded and len(arguments[0]) <= most
            return output * (1 + 1e-7 * arguments[0].shape[-2]) if rounds else output

    sites, samples = ls.select(model), [*MANY, len(MANY)]  # the last one comes alone
    with Rounding():
        full = ls.sweep(model, scorer(), samples, at=sites, batch_size=2, share=False)
        shared = ls.sweep(model, scorer(), samples, at=sites, batch_size=2)
    assert np.array_equal(full.correct, shared.correct)
    assert shared.notes == ()


class Odd(nn.Module):
    """Two layers and a head; where the last position says so, the others are added to it."""

    def __init__(self, limit):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
        self.last, self.head = nn.Linear(32, 32), nn.Linear(32, 8)
        self.limit = limit

    def forward(self, states, logits_to_keep=0):
        for layer in self.layers:
            states = states + layer(states).tanh()
        states = states + self.last(states)
        states = torch.where(states[:, -1].sum() > self.limit, states + states.mean(1, keepdim=True), states)
        return self.head(states[:, -logits_to_keep:])


@pytest.mark.parametrize("limit", ["always", "in variants", "never"])
def test_not_where_other_positions_matter(limit):
    inputs = torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(1)).repeat(len(MANY), 1, 1)

    @torch.no_grad()
    def score(model, samples):
        return model(inputs[samples], logits_to_keep=1)[:, 0, 0].tolist()

    model = Odd(-1e9 if limit == "always" else 1e9).eval()
    if limit == "in variants":  # a limit that the unmodified model stays below
        sums = []
        for site in [None, *ls.select(model, pattern="layers.*")]:
            with torch.no_grad():
                handle = model.last.register_forward_hook(
                    lambda *call: sums.append((call[1][0] + call[2])[:, -1].sum(1))
                )
                if site is None:
                    model(inputs, logits_to_keep=1)
                else:
                    with ls.Surgery(at=site, do=ls.Zero())(model):
                        model(inputs, logits_to_keep=1)
                handle.remove()
        model.limit = float(sums[0].max()) + 1e-3
        assert any((one > model.limit).all() for one in sums[1:3])  # not of the last site, which computes all
    sites = ls.select(model, pattern="layers.*")
    full = ls.sweep(model, score, MANY, at=sites, batch_size=1, share=False)
    shared = ls.sweep(model, score, MANY, at=sites, batch_size=1)
    assert np.array_equal(full.correct, shared.correct)
    matter = [note for note in shared.notes if "positions that are not scored" in note]
    assert bool(matter) == (limit == "in variants")


def test_a_check_that_fails_computes_all_positions(model, monkeypatch):
    from layersurgery.sweeps._prefix_tail import Tail

    def wrong(self, *given):
        output = plain(self, *given)
        return output + 1 if given[-1].has_left_out else output

    plain = Tail.run
    monkeypatch.setattr(Tail, "run", wrong)
    full = ls.sweep(model, scorer(), MANY, batch_size=1, share=False)
    shared = ls.sweep(model, scorer(), MANY, batch_size=1)
    assert np.array_equal(full.correct, shared.correct)
    assert any("computed in the last layer, too" in note for note in shared.notes)


def queries(hidden, heads=2):
    one = torch.randn(1, heads, LENGTH, 8, generator=torch.Generator().manual_seed(0))
    one[:, :, hidden] = float("nan")
    return one


MASKS = {
    "none": None,
    "true and false": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1).index_fill_(1, torch.tensor([0]), True),
    "numbers": torch.randn(1, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)),
    "of each head": torch.randn(1, 2, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)),
    "the same for all": torch.arange(LENGTH)[None] > 3,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("chosen", [tuple(range(40, 64)), (1, 3, *range(8, 30))], ids=["last", "some"])
def test_attention_of_every_kind_of_mask(mask, chosen):
    hidden = [row for row in range(LENGTH) if row not in chosen]
    asked, keys, values = queries(hidden), queries([]), queries([]) + 1
    full = ATTENTION(asked, keys, values, MASKS[mask], scale=0.1)
    with FewQueries({(1, LENGTH): chosen}, {}) as few:
        first, second = (ATTENTION(asked, keys, values, attn_mask=MASKS[mask], scale=0.1) for _ in range(2))
    assert few.has_left_out
    for one in (first, second):
        assert torch.equal(one[:, :, chosen], full[:, :, chosen])
        assert one[:, :, hidden].isnan().all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision_is_left_as_it_is(kind):
    """Other sums seldom show in what is rounded to so few digits: that some agree says little of others."""
    asked, keys = queries(list(range(40))).to(kind), queries([]).to(kind)
    with FewQueries({(1, LENGTH): tuple(range(40, 64))}, {}) as few:
        for _ in range(3):
            ATTENTION(asked, keys, keys)
    assert not few.has_left_out


@pytest.mark.parametrize(
    ("hidden", "given"),
    [
        (range(39), {}),
        (range(40), {"dropout_p": 0.5}),
        (range(0), {"is_causal": True}),
        (range(40), {"attn_mask": causal_lower_right(LENGTH, LENGTH)}),
    ],
    ids=["a query that is a number", "dropout", "all are numbers", "a mask of a kind of its own"],
)
def test_attention_that_is_left_as_it_is(hidden, given):
    asked, keys = queries(list(hidden)), queries([])
    with FewQueries({(1, LENGTH): tuple(range(40, 64))}, {}) as few:
        for _ in range(3):
            torch.manual_seed(0)
            found = ATTENTION(asked, keys, keys, **given)
    torch.manual_seed(0)
    expected = ATTENTION(asked, keys, keys, **given)
    assert not few.has_left_out
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


class Block(nn.Module):
    """One thing, another, and a feed-forward, of which the block holds the matrices itself."""

    def __init__(self):
        super().__init__()
        self.one, self.another, self.up, self.down = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, states):
        states = states + self.one(states).tanh()
        states = states + self.another(states).tanh()
        return states + self.down(self.up(states).tanh())


class Blocks(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList([Block() for _ in range(layers)]), nn.Linear(32, 8)

    def forward(self, states, logits_to_keep=0):
        for layer in self.layers:
            states = layer(states)
        return self.head(states[:, -logits_to_keep:])


def test_feed_forwards_that_a_layer_holds_itself():
    """What holds them begins before the last site does, and other things that end before it as well."""
    inputs = torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(1)).repeat(len(MANY), 1, 1)

    @torch.no_grad()
    def score(model, samples):
        return model(inputs[samples], logits_to_keep=1)[:, 0, 0].tolist()

    model = Blocks().eval()
    sites = ls.select(model, pattern="layers.*.another")
    full = ls.sweep(model, score, MANY, at=sites, batch_size=1, share=False)
    shared = ls.sweep(model, score, MANY, at=sites, batch_size=1)
    assert np.array_equal(full.correct, shared.correct)
    assert shared.notes == ()


@pytest.mark.parametrize("number", range(9))
def test_not_where_the_end_has_changed(number):
    """A scorer that lets the last feed-forward look at all positions, from one of its calls on."""
    model = Blocks(8)
    model.layers[-1].up = nn.Sequential(nn.Linear(32, 32))
    model.eval()
    inputs = torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(1)).repeat(len(MANY), 1, 1)
    up = model.layers[-1].up
    sites = ls.select(model, pattern="layers.*.one")
    found = []
    for share in (False, True):
        calls = Counter()

        @torch.no_grad()
        def score(model, samples, calls=calls):
            if samples[0] == 1 and calls[1] == number:
                up.forward = lambda states: type(up).forward(up, states) + states.mean(1, keepdim=True)
            calls[samples[0]] += 1
            return model(inputs[samples], logits_to_keep=1)[:, 0, 0].tolist()

        try:
            found.append(ls.sweep(model, score, MANY, at=sites, batch_size=1, share=share).correct)
        finally:
            vars(up).pop("forward", None)
    assert np.array_equal(*found)
