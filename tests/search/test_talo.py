"""`talo` on a real model whose every score is known, and what a `Finding` says of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import layersurgery as ls
from layersurgery.errors import LayerSurgeryWarning, SampleError, ScoringError, SearchError
from layersurgery.search import Decision, HalvingRule, PaperRule, paired_interval
from layersurgery.search._split import split
from layersurgery.sweeps import ModelOracle
from layersurgery.tasks import Sample
from layersurgery.testing import restored


class Stack(torch.nn.Module):
    """Layers whose weights are 1: which of them is zero tells which one is knocked out."""

    def __init__(self, n):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in range(n))
        for layer in self.layers:
            torch.nn.init.ones_(layer.weight)

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers])


class Table:
    """Scores [sites + 1, samples] by what the model's forward shows to be knocked out; counts what it is asked."""

    def __init__(self, scores, whole=False):
        self.scores = np.array(scores, dtype=float)
        self.whole = whole
        self.asked = []

    def __call__(self, model, samples):
        lit = model(torch.ones(1)).tolist()
        row = lit.index(0) + 1 if 0 in lit else 0
        columns = [int(sample.id) for sample in samples]
        self.asked.append((row, columns))
        scores = self.scores[row, columns]
        return float(scores.mean()) if self.whole else scores


def samples(n, **fields):
    return [Sample(str(index), "?", **{name: value[index] for name, value in fields.items()}) for index in range(n)]


def run(scores, pool, whole=False, **settings):
    scores = np.array(scores, dtype=float)
    model, score = Stack(len(scores) - 1).eval(), Table(scores, whole)
    with restored(model):
        found = ls.talo(model, score, pool, at=ls.select(model, pattern="layers.*"), **settings)
    return found, score


def helped_by(site, sites=3, n=40):
    """The base solves every other sample, one site all of them, and the others none."""
    scores = np.zeros((sites + 1, n))
    scores[0, ::2] = 1
    scores[site + 1] = 1
    return scores


def test_the_site_that_helps_is_found_and_checked_on_samples_that_the_search_never_saw():
    found, score = run(helped_by(1), samples(40), rule=PaperRule(10), confirm=20)
    assert found.verdict == "knock out"
    assert (found.site.path, found.decision.site) == ("layers.1", 1)
    assert found.surgery == ls.Surgery(at=found.site, do=ls.Zero())
    searched = {int(name) for name in found.table.samples}
    checked = {column for _, columns in score.asked for column in columns} - searched
    assert len(checked) == found.n_confirm == 20
    assert found.confirmed
    assert found.confirm_score == 1
    assert found.gain == 1 - found.confirm_base
    base = [helped_by(1)[0, column] for column in sorted(checked)]
    assert found.interval == paired_interval(base, np.ones(20))
    assert (found.n_probe, found.probe_gain) == (10, 1 - found.probe_base)


def test_the_check_evaluates_the_base_and_the_chosen_site_only():
    found, score = run(helped_by(1), samples(40), rule=PaperRule(10), confirm=20, share=False)
    assert [(row, len(columns)) for row, columns in score.asked if len(columns) == 20] == [(0, 20), (2, 20)]
    assert found.evaluations == sum(len(columns) for _, columns in score.asked) == 4 * 10 + 2 * 20


def test_without_a_site_there_is_nothing_to_check():
    found, score = run(np.repeat([[0.5], [0], [0]], 40, axis=1), samples(40), rule=PaperRule(10), confirm=20)
    assert (found.verdict, found.surgery, found.site) == ("keep", None, None)
    assert (found.gain, found.probe_gain, found.confirmed, found.n_confirm) == (0, 0, False, 0)
    assert {column for _, columns in score.asked for column in columns} == {int(name) for name in found.table.samples}
    assert found.evaluations == 3 * 17
    assert "Keep the model as it is." in str(found)
    assert "nothing to confirm" in str(found)


def test_defaults_are_zero_and_halving_on_the_attention_of_the_backbone():
    from tests.models import llama

    model = llama().eval()
    found = ls.talo(model, next_token, samples(35))
    assert found.rule == HalvingRule()
    assert found.table.sites == ls.select(model)
    assert {step.do for surgery in found.table.surgeries for step in surgery.steps} == {ls.Zero()}


def next_token(model, samples):
    ids = torch.tensor([[3 + int(sample.id) % 7, 5, 9] for sample in samples])
    return (model(ids).logits[:, -1].argmax(-1) % 2).tolist()


def test_samples_of_a_group_count_as_one():
    """Twelve samples on two pictures: what is shown on one of them says little of another."""
    scores = helped_by(1, n=12)
    scores[0], scores[2] = 0, 1
    alone, _ = run(scores, samples(12), rule=HalvingRule(z=8))
    grouped, _ = run(scores, samples(12, group=["one"] * 6 + ["other"] * 6), rule=HalvingRule(z=8))
    assert (alone.verdict, grouped.verdict) == ("knock out", "keep")


def test_groups_are_those_that_samples_name():
    model = Stack(2).eval()
    oracle = ModelOracle(model, len, [1, {"group": "a"}], at=ls.select(model, pattern="layers.*"), do=ls.Zero())
    assert oracle.groups == ((0,), "a")
    assert ModelOracle(model, len, [1, 2], at=oracle.sites, do=ls.Zero()).groups is None


def test_the_same_seed_gives_the_same_finding_and_another_draws_others():
    scores = np.random.default_rng(0).integers(0, 2, (5, 80))
    one, same, other = (run(scores, samples(80), rule=PaperRule(10), confirm=30, seed=seed)[0] for seed in (3, 3, 4))
    assert one.decision == same.decision
    assert (one.gain, one.interval, one.table.samples) == (same.gain, same.interval, same.table.samples)
    assert one.table.samples != other.table.samples


def test_the_rules_draws_do_not_depend_on_the_check():
    scores = helped_by(0)
    alone, _ = run(scores[:, :20], samples(20), rule=PaperRule(10), seed=5)
    checked, _ = run(
        scores, samples(20), rule=PaperRule(10), seed=5, confirm=[Sample(str(i), "?") for i in range(20, 40)]
    )
    assert alone.decision == checked.decision


def test_groups_are_not_split_between_search_and_check():
    pool = samples(60, group=[str(index // 4) for index in range(60)])
    found, score = run(helped_by(2, n=60), pool, rule=PaperRule(10), confirm=22)
    held = {column for _, columns in score.asked if len(columns) == found.n_confirm for column in columns}
    assert found.n_confirm == 20
    assert {pool[column].group for column in held}.isdisjoint(pool[int(name)].group for name in found.table.samples)
    assert len({pool[column].group for column in held}) == 5


def test_given_samples_are_used_for_the_check():
    found, _ = run(helped_by(1), samples(40)[:20], rule=PaperRule(10), confirm=samples(40)[20:])
    assert (found.n_confirm, found.confirm_base, found.confirm_score) == (20, 0.5, 1)


OVERLAPS = [
    (samples(40)[:20], samples(40)[19:], "sample '19' is on both sides"),
    (
        samples(20, group=["a"] * 20),
        [Sample("x", "?", group="a")],
        "group 'a' is on both sides",
    ),
    (["text"] * 20, ["other", "text"], "sample 'text' is on both sides"),
    ([{"id": str(i)} for i in range(20)], [{"id": "3"}], "sample '3' is on both sides"),
]


@pytest.mark.parametrize(("pool", "held", "message"), OVERLAPS)
def test_a_sample_on_both_sides_is_refused_before_anything_is_evaluated(pool, held, message):
    model, score = Stack(2), Table(np.zeros((3, 40)))
    with pytest.raises(SampleError, match=message):
        ls.talo(model, score, pool, at=ls.select(model, pattern="layers.*"), rule=PaperRule(10), confirm=held)
    assert not score.asked


def test_objects_without_a_name_are_told_apart_by_identity():
    from layersurgery.search._split import split

    pool = [[0], [0], [0]]
    assert split(pool, [[0]], None, np.random.default_rng(0))[1] == [[0]]
    with pytest.raises(SampleError, match="is on both sides"):
        split(pool, pool[:1], None, np.random.default_rng(0))


def test_samples_of_one_id_in_different_tasks_are_different():
    from layersurgery.search._split import split

    pool, held = [Sample("1", "?", task="a")], [Sample("1", "?", task="b")]
    assert split(pool, held, None, np.random.default_rng(0)) == (pool, held)


@pytest.mark.parametrize(
    ("n", "settings", "message"),
    [
        (0, {}, "samples is empty"),
        (34, {"rule": PaperRule(20)}, r"PaperRule\(shots=20\) may need 35 labelled samples; there are 34"),
        (
            40,
            {"rule": PaperRule(10), "confirm": 30},
            "may need 17 labelled samples, and confirm=30 keeps 30 away from it: 47 in all; there are 40",
        ),
        (40, {"confirm": 0}, "confirm=0: give the number of samples"),
        (40, {"confirm": -2}, "confirm=-2: give the number of samples"),
        (40, {"confirm": True}, "confirm=True: give a number"),
        (40, {"confirm": []}, r"confirm=\[\]: give a number"),
        (40, {"confirm": "all"}, "confirm='all': give a number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_evaluated(n, settings, message):
    model, score = Stack(2), Table(np.zeros((3, 40)))
    with pytest.raises(SampleError, match=message):
        ls.talo(model, score, samples(n), at=ls.select(model, pattern="layers.*"), **settings)
    assert not score.asked


def test_a_group_larger_than_the_check_is_named():
    with pytest.raises(SampleError, match="confirm=5: the smallest group has 40 samples"):
        run(helped_by(0), samples(40, group=["a"] * 40), rule=PaperRule(10), confirm=5)


def test_a_rule_of_ones_own_needs_only_a_site():
    def best_of_all(oracle, rng):
        reading = oracle.read(range(oracle.n_sites + 1), range(oracle.n_samples))
        return Decision(int(reading.correct[1:].mean(axis=1).argmax()))

    found, _ = run(helped_by(2, n=10), samples(10), rule=best_of_all)
    assert (found.decision.site, found.probe_base, found.probe_gain, found.n_probe) == (2, 0.5, 0.5, 10)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda oracle, rng: 2, "returned 2; return a layersurgery.Decision"),
        (lambda oracle, rng: Decision(3), "chose site 3, but there are 3, 0 to 2"),
        ("paper", "rule='paper' is not callable"),
    ],
)
def test_a_rule_that_does_not_decide_is_refused(rule, message):
    with pytest.raises(SearchError, match=message):
        run(helped_by(0), samples(40), rule=rule)


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(SearchError, match="seed="):
        run(helped_by(0), samples(40), seed=seed)


def test_a_model_in_training_mode_is_refused():
    model = Stack(2).train()
    with pytest.raises(ScoringError, match="training mode"):
        ls.talo(model, Table(np.zeros((3, 40))), samples(40), at=ls.select(model, pattern="layers.*"))


def test_an_error_in_the_middle_of_a_layer_leaves_the_model_as_it_was():
    model = Stack(2).eval()

    def score(model, samples):
        if 0 in model(torch.ones(1)).tolist():
            raise RuntimeError("out of paper")
        return [0] * len(samples)

    with restored(model), pytest.raises(ScoringError, match=r"layers\.0.*out of paper"):
        ls.talo(model, score, samples(40), at=ls.select(model, pattern="layers.*"), share=False)


def test_a_scorer_of_one_number_has_no_interval():
    found, _ = run(helped_by(1), samples(40), whole=True, rule=PaperRule(10), confirm=20)
    assert found.decision.site == 1
    assert found.interval is None
    assert not found.harmful
    assert found.gain == pytest.approx(1 - found.confirm_base)
    assert "no interval: the scorer gives one number for all samples" in str(found)


def test_a_paragraph_tells_base_site_gains_interval_cost_and_what_is_not_known():
    found, _ = run(helped_by(1), samples(40), rule=PaperRule(10), confirm=20, seed=1)
    text = str(found)
    assert "\n" not in text
    assert text.startswith("Knock out: zero layers.1")
    assert f"On 10 probe samples the unmodified model scores {100 * found.probe_base:.1f} %" in text
    assert f"{100 * found.probe_gain:+.1f} points" in text
    assert "On 20 held-out samples the score goes from" in text
    assert f"a held-out gain of {100 * found.gain:+.1f} points" in text
    assert "95 % paired interval" in text
    assert "Agresti-Min" in text
    assert "80 evaluations" in text
    assert "Not known: what the knock-out does to other tasks." in text
    assert "biased" not in text


def test_without_a_check_the_paragraph_warns_of_the_winners_luck():
    found, _ = run(helped_by(1), samples(20), rule=PaperRule(10))
    assert "The probe gain is the best of 3 sites on 10 samples and is biased upwards; it was not checked" in str(found)
    assert (found.confirmed, found.confirm_base) == (False, None)
    assert found.gain == found.corrected.gain
    assert found.probe_gain == found.corrected.apparent
    assert found.interval == found.corrected.interval
    assert "Corrected for the luck of the choice, the gain is estimated at +" in str(found)
    assert "selection-adjusted: Bonferroni over 3 sites" in str(found)


def lucky(then, sites=3):
    """Site 1 gains on the 20 samples that are searched, and does `then` on the 60 that are held out."""
    scores = np.zeros((sites + 1, 80))
    scores[0, ::2] = 1
    scores[2, :20] = 1
    scores[2, 20:] = then(scores[0, 20:])
    return run(scores, samples(80)[:20], rule=PaperRule(10), confirm=samples(80)[20:])[0]


def test_a_confirmed_harm_is_called_a_harm():
    found = lucky(lambda base: base * 0)
    assert found.harmful
    assert found.gain == -0.5
    assert (found.verdict, found.decision.site) == ("knock out", 1)
    assert "This is a harm: do not use the knock-out" in str(found)


def test_an_interval_with_0_says_that_nothing_is_shown():
    found = lucky(lambda base: base)
    assert (found.gain, found.harmful) == (0, False)
    assert "The interval includes harm: that it helps is not shown." in str(found)


def test_a_shown_gain_carries_no_such_warning():
    assert "is not shown" not in str(lucky(lambda base: base * 0 + 1))


def test_a_base_that_solves_everything_is_told_apart_from_sites_that_do_not_help():
    found, _ = run(np.ones((3, 40)), samples(40), rule=PaperRule(10))
    assert (found.probe_base, found.n_probe, found.decision.redraws) == (1, 40, 4)
    assert "what any site would do, since none was evaluated" in str(found)


def test_other_scores_than_0_and_1_are_not_called_percent():
    found, _ = run(helped_by(1) * 7.5, samples(40), rule=PaperRule(10), confirm=20)
    assert "%" not in str(found).replace("95 %", "")
    assert "points" not in str(found)
    assert found.interval.method == "paired t"


@pytest.mark.parametrize(
    "found",
    [
        lambda: run(helped_by(1), samples(40), rule=PaperRule(10), confirm=20)[0],
        lambda: run(helped_by(1) * 0.5, samples(40), rule=PaperRule(10), confirm=1)[0],
        lambda: run(np.zeros((3, 40)), samples(40), rule=PaperRule(10))[0],
        lambda: run(np.ones((3, 40)), samples(40), rule=PaperRule(10))[0],
    ],
)
def test_the_record_is_strict_json(found):
    found = found()
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["verdict"] == found.verdict
    assert record["evaluations"] == found.evaluations
    assert record["text"] == str(found)
    assert record["decision"]["site"] == found.decision.site
    assert (record["confirm"] is None) == (not found.confirmed)
    if found.site is not None:
        assert record["site"]["path"] == found.site.path


def test_rules_and_tables_need_no_torch():
    code = (
        "import sys, layersurgery.search, layersurgery.vectors, layersurgery.report; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def from_benchmark(name, count=30):
    return [Sample(f"{name}-{n}", "Which?", ("red", "blue"), n % 2, benchmark=name) for n in range(count)]


def test_a_check_on_a_benchmark_that_was_built_from_the_searched_one_is_warned_of():
    with pytest.warns(LayerSurgeryWarning, match="MMStar took 345 of its 1500 questions from where MathVista-MINI is"):
        split(from_benchmark("mathvista_mini"), from_benchmark("mmstar"), PaperRule(4), np.random.default_rng(0))


@pytest.mark.parametrize("other", ["mmstar", "scienceqa_val", "birds", ""])
def test_other_checks_are_not_warned_of(other, recwarn):
    held = [Sample(f"held-{n}", "Which?", ("red", "blue"), 0, benchmark=other) for n in range(9)]
    pool, kept = split(from_benchmark("mmstar"), held, PaperRule(4), np.random.default_rng(0))
    assert (len(pool), len(kept), len(recwarn)) == (30, 9, 0)
