"""Break the library on purpose, one line at a time, and see the tests fail: `python -m tests.mutants`.

Each mutant removes or changes a line that an invariant rests on, in a copy of the tree, and runs the tests that should
notice. A mutant that survives is a hole in the tests, and the exit code is then 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REVERSIBLE = "tests/surgery/test_reversible.py"
SURGERY = "tests/surgery/test_surgery.py"
CONTRIBUTION = "tests/surgery/test_contribution.py"
HEADS = "tests/sites/test_heads.py"
SWEEP = "tests/sweeps/test_sweep.py"


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str
    tests: str


LEDGER, BLOCK, PARAMETERS, TAPS, CLOCK = (
    f"layersurgery/surgery/_{name}.py" for name in ("ledger", "surgery", "parameters", "taps", "clock")
)
WATCH, LOCAL, FIT, SHARING, STAND_INS, RECURRING, PREFIX = (
    f"layersurgery/sweeps/_{name}.py"
    for name in ("watch", "local", "fit", "sharing", "stand_ins", "recurring", "prefix")
)
RECORD, BEFORE, FOLLOWED, COURSE, REPLAY, STATE, PROBE, TAIL, VALUES, ATTENTION = (
    f"layersurgery/sweeps/_prefix_{name}.py"
    for name in ("record", "before", "followed", "course", "replay", "state", "probe", "tail", "values", "attention")
)
ZEROS = "layersurgery/sweeps/_prefix_zeros.py"
GUARDS, SHARED = "tests/sweeps/test_prefix_guards.py", "tests/sweeps/test_sharing.py"
TAILS, CLASSES = "tests/sweeps/test_prefix_tail.py", "tests/sweeps/test_prefix_architectures.py"
MUTANTS = [
    Mutant(
        "1, 2: the parameter is not put back",
        LEDGER,
        "            set_parameter(slot.module, slot.name, state.top())\n",
        "",
        f"{REVERSIBLE} -k leaves_no_trace",
    ),
    Mutant(
        "2: a block is not lifted on exit",
        BLOCK,
        "        cast(Handle, self._handle).remove()\n",
        "        pass\n",
        REVERSIBLE,
    ),
    Mutant(
        "2: a failed attachment is not rolled back",
        LEDGER,
        "            lift(token, plan)\n            raise\n        return token",
        "            raise\n        return token",
        REVERSIBLE,
    ),
    Mutant(
        "2: an interrupted restoration is not finished",
        LEDGER,
        "        _lift(token, plan)\n        raise\n",
        "        raise\n",
        f"{REVERSIBLE} -k every_step",
    ),
    Mutant(
        "2: a block dropped at entry stays in force",
        BLOCK,
        "        if self._handle is not None and not sys.is_finalizing():\n",
        "        if not sys:\n",
        f"{REVERSIBLE} -k dropped",
    ),
    Mutant(
        "2: lifting out of order leaves what lay above as it was",
        LEDGER,
        "_rebased(overlay, below) if moved else overlay",
        "overlay",
        f"{REVERSIBLE} -k 'AnyOrder or lies_above'",
    ),
    Mutant(
        "2: out of order, the wrong surgery is lifted",
        LEDGER,
        "        if overlay.token == token:\n",
        "        if overlay is state.overlays[-1]:\n",
        f"{REVERSIBLE} -k AnyOrder",
    ),
    Mutant(
        "2: the order of the state dict moves",
        LEDGER,
        "        module._parameters[name] = parameter  #",
        "        module._parameters.pop(name); module._parameters[name] = parameter  #",
        f"{REVERSIBLE} -k leaves_no_trace",
    ),
    Mutant(
        "1: values are written into the original",
        LEDGER,
        "        module._parameters[name] = parameter  #",
        "        module._parameters[name].data.copy_(parameter.data)  #",
        f"{REVERSIBLE} -k leaves_no_trace",
    ),
    Mutant(
        "1: an intervention's alias of the original is put in force",
        LEDGER,
        "        value = value.clone()  #",
        "        pass  #",
        f"{SURGERY} -k cannot_expose",
    ),
    Mutant(
        "2: requires_grad is lost",
        LEDGER,
        "requires_grad=below.requires_grad",
        "requires_grad=False",
        f"{REVERSIBLE} -k inference_mode",
    ),
    Mutant(
        "2: tensors made in inference mode cannot be used outside",
        LEDGER,
        "return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()",
        "return nullcontext()",
        f"{REVERSIBLE} -k inference_mode",
    ),
    Mutant(
        "2: recurrent kernels read the old weights",
        LEDGER,
        "if isinstance(module, nn.RNNBase):",
        "if False:",
        f"{REVERSIBLE} -k recurrent",
    ),
    Mutant(
        "3: a tied parameter changes everywhere",
        PARAMETERS,
        'if step.tied == "everywhere":',
        "if True:",
        f"{SURGERY} -k tied",
    ),
    Mutant(
        "3: what is tied is read from what is in force",
        PARAMETERS,
        "(key := id(original(module, name)))",
        "(key := id(parameter))",
        f"{SURGERY} -k tied",
    ),
    Mutant(
        "4: constants take memory",
        "layersurgery/interventions/_base.py",
        "    return made.expand_as(tensor) if",
        "    return made.expand_as(tensor).clone() if",
        f"{REVERSIBLE} -k zero_memory",
    ),
    Mutant(
        "4, 2: noise comes from the global random state",
        "layersurgery/interventions/_noise.py",
        "generator=place.generator(self.seed), ",
        "",
        f"{REVERSIBLE} -k 'noise or leaves_no_trace'",
    ),
    Mutant(
        "2: a surgery keeps its model alive",
        LEDGER,
        "weakref.WeakKeyDictionary()",
        "{}",
        f"{REVERSIBLE} -k freed",
    ),
    Mutant(
        "5: a meta weight is operated on",
        PARAMETERS,
        "    if parameter.is_meta:\n",
        "    if False:\n",
        f"{SURGERY} -k refused_before",
    ),
    Mutant(
        "7: a site that never ran counts",
        LOCAL,
        "        if not ran and not (",
        "        if False and not (",
        SWEEP,
    ),
    Mutant(
        "sharing: it does not matter what a part is given",
        REPLAY,
        "        return call.inputs.are(arguments, keywords, found)",
        "        return True",
        GUARDS,
    ),
    Mutant(
        "sharing: writes into what is kept go unseen",
        VALUES,
        "return list(map(count_of_writes, self.tensors)) == self.versions",
        "return True",
        GUARDS,
    ),
    Mutant(
        "sharing: other weights below the site go unseen",
        STATE,
        "            found = {state.module for state in others if state.is_made_over()}\n",
        "            found = set[nn.Module]()\n",
        GUARDS,
    ),
    Mutant(
        "sharing: the state of a module goes unseen",
        STATE,
        "            replaced = {(state.module, name) for state in others for name in state.replaced()}\n",
        "            replaced = set[tuple[nn.Module, str]]()\n",
        GUARDS,
    ),
    Mutant(
        "sharing: writes into the state of a module go unseen",
        STATE,
        "set[nn.Module](), {*self._rewritten()}",
        "set[nn.Module](), set[tuple[nn.Module, str]]()",
        GUARDS,
    ),
    Mutant(
        "sharing: what a variant rests on is not looked at", COURSE, "in order[:before]])", "in order[:0]])", GUARDS
    ),
    Mutant(
        "sharing: a changed end of the model goes unseen",
        COURSE,
        "if not always.isdisjoint(group)}",
        "if not always and group}",
        TAILS,
    ),
    Mutant(
        "sharing: attention leaves out queries that are numbers",
        ATTENTION,
        "if not chosen or not _are_only(rows, query):",
        "if not chosen:",
        TAILS,
    ),
    Mutant(
        "sharing: attention of fewer queries may round otherwise",
        ATTENTION,
        "self._agree[form] = torch.equal(part, output.index_select(2, rows))",
        "self._agree[form] = len(part) > 0",
        TAILS,
    ),
    Mutant(
        "2: a forward of ours stays",
        STAND_INS,
        '                del held["forward"]\n',
        "                pass\n",
        GUARDS,
    ),
    Mutant(
        "sharing: the first variant is not checked",
        SHARING,
        "        same = _same_scores(scores, full) and (written or digests == known.digests)\n",
        "        same = bool(scores)\n",
        SHARED,
    ),
    Mutant(
        "sharing: a surgery is put in force as at first, whatever has become of the model",
        PREFIX,
        "if not self._standing.changes(groups):",
        "if True:",
        f"{SHARED} -k for_good",
    ),
    Mutant(
        "sharing: from the second micro-batch on, a variant is believed to rest on little",
        PREFIX,
        "self._rests_on[known] = self._ground.groups(known.modules, itself=True)",
        "self._rests_on[known] = self._ground.groups(known.modules, itself=True)[-1:]",
        f"{SHARED} -k for_good",
    ),
    Mutant(
        "sharing: zeros are put in place that others wrote into",
        RECURRING,
        "if kept is not None and kept.are_intact:",
        "if kept is not None:",
        "tests/sweeps/test_recurring.py",
    ),
    Mutant(
        "what is gone counts as if it were there",
        FIT,
        "            self._now[device] -= size\n",
        "            pass\n",
        "tests/sweeps/test_fit.py -k 'allocates or power'",
    ),
    Mutant(
        "2: an ending is taken for finite",
        ZEROS,
        "            if not math.isfinite(total.item()):\n",
        "            if False:\n",
        "tests/sweeps/test_prefix_zeros.py -k infinite",
    ),
    Mutant(
        "sharing: what is lent is not followed",
        FOLLOWED,
        "if module in kept or not calls <= parts.above([module]):",
        "if module in kept:",
        "tests/sweeps/test_prefix_followed.py",
    ),
    Mutant(
        "sharing: a part begins when what holds it does, even if that is later",
        FOLLOWED,
        "return holders[0] if all(begun) else None",
        "return holders[0]",
        "tests/sweeps/test_prefix_followed.py",
    ),
    Mutant(
        "sharing: small tensors count as they are when the pass is over",
        BEFORE,
        "self._output, self._counts = output, Counted.now([*self._reach.tensors, *reach.tensors])",
        "self._output, self._counts = output, Counted.now([])",
        GUARDS,
    ),
    Mutant(
        "sharing: a digest is not compared",
        VALUES,
        "        return alike and tensor_digest(value) == self.digest",
        "        return alike",
        "tests/sweeps/test_prefix.py -k told_from",
    ),
    Mutant(
        "sharing: what was found the same is taken for it when it was written into",
        VALUES,
        "before[0] is value and before[1] == value._version",
        "before[0] is value",
        "tests/sweeps/test_prefix.py -k 'told_from or written_into_on_the_way'",
    ),
    Mutant(
        "sharing: positions are left out that matter",
        PROBE,
        "if _equal(self._outputs(module)[0], expected):",
        "if self._outputs(module)[0]:",
        TAILS,
    ),
    Mutant(
        "sharing: positions are left out where experts are chosen",
        PROBE,
        "return foreign or name in _MIXING or not _TAGS.isdisjoint(operation.tags)",
        "return foreign and not _TAGS and not _MIXING",
        f"{CLASSES} -k experts",
    ),
    Mutant(
        "sharing: fewer rows may round otherwise",
        TAIL,
        "        if not self._agree[key]:\n            return forward(states)\n",
        "",
        TAILS,
    ),
    Mutant(
        "sharing: whoever looks on sees positions that were left out",
        TAIL,
        " or any(map(hooks_on, self.around))",
        "",
        TAILS,
    ),
    Mutant(
        "sharing: what comes from positions that were left out goes unseen",
        TAIL,
        "return first is None or not math.isnan(first.sum(dtype=torch.float32).item())",
        "return first is None or bool(math)",
        TAILS,
    ),
    Mutant(
        "2: the sweep's hooks stay",
        WATCH,
        "            for handle in handles:\n                handle.remove()\n",
        "            pass\n",
        SWEEP,
    ),
    Mutant(
        "2: the hook on a module stays",
        TAPS,
        "            _unhook(outlet, tap.module._forward_hooks, tap.module._forward_hooks_with_kwargs)\n",
        "            pass\n",
        CONTRIBUTION,
    ),
    Mutant(
        "2: the hook that counts positions stays",
        TAPS,
        "_unhook(entry.clock, tap.layer._forward_pre_hooks,",
        "_unhook(None, tap.layer._forward_pre_hooks,",
        CONTRIBUTION,
    ),
    Mutant("2: others' hooks see what was before", TAPS, ", prepend=True)", ")", f"{CONTRIBUTION} -k others_hooks"),
    Mutant(
        "a second output that is added stays",
        TAPS,
        "return output if also is None else",
        "return output if True else",
        f"{CONTRIBUTION} -k added_as_well",
    ),
    Mutant(
        "positions begin anew with each token of a generation",
        CLOCK,
        "            self.start, self.step = end, self.step + 1\n",
        "            self.start, self.step = 0, self.step + 1\n",
        f"{CONTRIBUTION} -k positions_are_those",
    ),
    Mutant(
        "a slice's neighbours change",
        LEDGER,
        "        value.index_copy_(piece.dim, entries, new.contiguous())\n",
        "        value = value.zero_()\n",
        f"{HEADS} -k 'every_intervention or stretch'",
    ),
    Mutant(
        "1: slices are written into the original",
        LEDGER,
        "plain(values).clone(memory_format=torch.preserve_format)",
        "plain(values)",
        f"{HEADS} -k every_intervention",
    ),
]


def main() -> int:
    """Try all mutants, or those whose number is given; print a line each."""
    wanted = {int(word) for word in sys.argv[1:]} or range(len(MUTANTS))
    survived = 0
    for number in wanted:
        mutant = MUTANTS[number]
        caught = _caught(mutant)
        survived += not caught
        print(f"{number:2}  {'caught  ' if caught else 'SURVIVED'}  invariant {mutant.what}", flush=True)
    print(f"{len(wanted)} mutants, {survived} survived")
    return 1 if survived else 0


def _caught(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("layersurgery", "tests", "pyproject.toml"):
            source, target = ROOT / name, Path(folder, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
            else:
                shutil.copy(source, target)
        path = Path(folder, mutant.file)
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"mutant {mutant.what!r}: its line is in {mutant.file} {text.count(mutant.old)} times, not once"
            )
        path.write_text(text.replace(mutant.old, mutant.new))
        file, _, selection = mutant.tests.partition(" -k ")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
        command += ["-k", selection.strip("'")] if selection else []
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(
                f"mutant {mutant.what!r}: the tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
