"""What the adapters in this folder share: their options, the samples, and the search."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import layersurgery as ls
from layersurgery.scoring import model_family, prompt_styles, prompt_template
from layersurgery.tasks import Sample, benchmark, load_samples


def parser(description: str | None, model_id: str) -> argparse.ArgumentParser:
    """The options that every adapter has.

    Args:
        description: the adapter's docstring.
        model_id: the checkpoint that is used where none is named.
    """
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("--model", default=model_id, metavar="ID", help="hub id or local folder (%(default)s)")
    add("--dtype", default="auto", help="float32, bfloat16, float16; auto: as the checkpoint is stored (%(default)s)")
    add("--device-map", help="as in transformers: cuda:1, auto, ...; left out: the GPU if there is one")
    add("--benchmark", default="scienceqa", metavar="NAME", help="a benchmark, see `layersurgery tasks` (%(default)s)")
    add("--task", metavar="NAME", help="one of its tasks, or of those in --data; left out: all of them")
    add("--source", metavar="PATH", help="local copy of the benchmark's data; left out: the hub")
    add("--data", metavar="FILE", help="questions of your own (.jsonl or .parquet) in place of a benchmark")
    add("--prompt", default="vlmevalkit", choices=prompt_styles(), help="whose wording is used (the paper's)")
    add("--scorer", default="choices", choices=["choices", "generate"], help="how answers are read (%(default)s)")
    add("--shots", type=int, default=15, metavar="N", help="probe samples of the first round (%(default)s)")
    add("--confirm", type=int, default=25, metavar="N", help="held-out samples for the check (%(default)s)")
    add("--batch-size", type=int, default=4, metavar="N", help="samples in one forward pass (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of all draws (%(default)s)")
    add("--output", metavar="DIR", help="write surgery.json there, where something was found")
    return found


def samples(options: argparse.Namespace) -> Sequence[Sample]:
    """The samples that the options name. Call it before the model is loaded: mistakes show sooner."""
    if options.data is not None:
        return load_samples(options.data, task=options.task)
    return benchmark(options.benchmark).samples(options.task, source=options.source)


def prompt(model: Any, options: argparse.Namespace) -> Any:
    """The wording of the question, as the chosen harness puts it to this family of models."""
    overrides = None if options.data else benchmark(options.benchmark).prompts.get(options.prompt)
    return prompt_template(options.prompt, family=model_family(model), overrides=overrides)


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """How generated answers are read, and how long they may be: the benchmark says so, where there is one."""
    if options.data:
        return {}
    chosen = benchmark(options.benchmark)
    return {"extract": chosen.extractor, "max_new_tokens": chosen.max_new_tokens}


def scorer(model: Any, processor: Any, options: argparse.Namespace) -> ls.ChoiceScorer | ls.GenerationScorer:
    """The scorer that the options name."""
    settings = {"batch_size": options.batch_size, "prompt": prompt(model, options)}
    if options.scorer == "choices":
        return ls.ChoiceScorer(processor, **settings)
    return ls.GenerationScorer(processor, **settings, **reading(options))


def talo(model: Any, score: Any, questions: Sequence[Sample], options: argparse.Namespace) -> ls.Finding:
    """Search for the layer whose attention hurts, check it on held-out samples, print and save what was found."""
    found = ls.talo(
        model,
        score,
        questions,
        at=ls.select(model),  # the attention of every layer of the language backbone
        rule=ls.PaperRule(options.shots),
        confirm=options.confirm or None,
        seed=options.seed,
        progress=True,
    )
    print(found)
    if options.output is not None and found.surgery is not None:
        print(f"written: {found.surgery.save_pretrained(options.output)}")
    return found


def place(model: Any, device_map: Any) -> Any:
    """The model in evaluation mode, on the GPU if there is one and no device map was given."""
    import torch

    model = model.eval()
    if device_map is not None:
        return model  # transformers has placed it
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
