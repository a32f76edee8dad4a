"""Other libraries that can knock out a module, as far as they are installed beside the ones that are tested with.

None of them is needed. `python -m tests.benchmarks.sweep --peers-in DIRECTORY` makes an environment that has them.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch

from tests.benchmarks._sweep_methods import CannotRunError, Method, zeroed
from tests.benchmarks._sweep_shapes import ASKED, Case, Place

PEERS = ("pyvene", "nnterp", "transformer-lens")
_ROOT = Path(__file__).parents[2]


class Peer(Method):
    """A method of another library. One row is tried at once, so that what it cannot do is known before it is timed."""

    library: ClassVar[str]
    generates = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        library = _imported(self.library)
        try:
            self.prepare(library)
            self.output((0, 1))
        except Exception as error:  # whatever a library may raise of a model that it does not know
            raise CannotRunError(f"does not take {type(case.model).__name__}: {_first_line(error)}") from error

    def prepare(self, library: Any) -> None:
        """Wrap the model."""
        raise NotImplementedError


class Pyvene(Peer):
    """An `IntervenableModel` for each row; making it is part of the cost, since a row cannot do without."""

    name = "pyvene"
    library = "pyvene"

    def prepare(self, library: Any) -> None:
        self.pyvene = library

    @torch.no_grad()
    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        given = {**self.batches[batch], **ASKED}
        if row == 0:
            return self.model(**given).logits
        component = f"{self.sites[row - 1].path}.output"
        change = {"component": component, "intervention_type": self.pyvene.ZeroIntervention}
        return self.pyvene.IntervenableModel([change], model=self.model)(base=given)[1].logits


class NNterp(Peer):
    """A trace of a `StandardizedTransformer` for each row."""

    name = "nnterp"
    library = "nnterp"

    def prepare(self, library: Any) -> None:
        self.envoy = library.StandardizedTransformer(self.model, tokenizer=_tokenizer(), check_renaming=False)

    @torch.no_grad()
    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        given = dict(self.batches[batch])
        if row == 0:
            with self.envoy.trace(given, **ASKED):
                logits = self.envoy.logits.save()
            return logits  # noqa: RET504 - nnsight runs the block, and it must not return
        with self.envoy.trace(given, **ASKED):
            self.envoy.attentions_output[row - 1][:] = 0
            logits = self.envoy.logits.save()
        return logits  # noqa: RET504 - nnsight runs the block, and it must not return


class TransformerLens(Peer):
    """A `run_with_hooks` of a `TransformerBridge` for each row."""

    name = "TransformerLens"
    library = "transformer_lens"

    def prepare(self, library: Any) -> None:
        from transformer_lens.model_bridge.sources import build_bridge_from_module  # pyright: ignore

        self.bridge = build_bridge_from_module(self.model, type(self.model).__name__, hf_config=self.model.config)

    @torch.no_grad()
    def output(self, place: Place) -> torch.Tensor:
        batch, row = place
        given = dict(self.batches[batch])
        hooks = [(f"blocks.{row - 1}.attn.hook_out", lambda output, hook: zeroed(output))] if row else []
        tokens = given.pop("input_ids")
        return self.bridge.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False, **given)[:, -1:]


def run_in(directory: str) -> NoReturn:
    """Run this command again in an environment that has the peers, made there if there is none.

    It sees the packages of the environment that is in use now, and what is installed into it is nowhere else.
    """
    python = Path(directory, "bin", "python")
    if not python.exists():
        venv.create(directory, with_pip=True)
        scheme = {"base": str(Path(directory).resolve()), "platbase": str(Path(directory).resolve())}
        Path(sysconfig.get_path("purelib", vars=scheme), "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = ("-m", "pip", "install", "--quiet", "--constraint", str(_ROOT / "constraints.txt"), *PEERS)
        subprocess.run([python, *install], check=True)
    asked = [one for one in sys.argv[1:] if one != directory and not one.startswith("--peers-in")]
    os.execv(python, [str(python), "-m", "tests.benchmarks.sweep", *asked])


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a module of theirs may raise where it does not fit the others
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise CannotRunError(f"not installed (pip install {name.replace('_', '-')}, or --peers-in)") from error
        raise CannotRunError(f"does not import beside what is installed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _tokenizer() -> Any:
    """One that knows nothing: tokens are given as numbers, but it must be there."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a")
