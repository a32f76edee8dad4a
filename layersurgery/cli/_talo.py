"""`layersurgery talo`."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

from layersurgery.cli import _screen as screen
from layersurgery.cli._load import load_model
from layersurgery.cli._plan import plan
from layersurgery.cli._questions import Questions, questions
from layersurgery.errors import TaskError


def talo(options: argparse.Namespace) -> None:
    """Search on one task, check, and say what was found; or, in a dry run, what that would take."""
    import layersurgery as ls

    do = [_intervention(text) for text in options.do]
    rule = _rule(options)
    asked = questions(options, rule.labels_needed if options.labels or isinstance(rule, ls.PaperRule) else None)
    how = _way_of_scoring(options, asked)  # refused, if it must be, before a model is loaded
    loaded = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
        trust_remote_code=options.trust_remote_code,
        revision=options.revision,
        image_settings=options.image_settings,
    )
    scorer, prompt = _scorer(options, asked, how, loaded)
    sites = ls.select(loaded.model, options.role, tower=options.tower)
    record = {
        "model": options.model,
        "task": options.task,
        "data": asked.origin,
        "loaded": loaded.record.to_dict(),
        "images": _image_record(loaded.processor),
        "scorer": {"kind": how, "prompt": prompt.name, "fingerprint": scorer.fingerprint},
        "notes": list(asked.notes),
    }
    several = {"max_sites": options.max_sites, "beam": options.beam}
    search = {"at": sites, "do": do, "rule": rule, "confirm": asked.confirm, "seed": options.seed, **several}
    if options.dry_run:
        foreseen = plan(loaded.model, scorer, asked.pool, **search)
        _show({**record, "plan": foreseen.to_dict()}, str(foreseen), asked, options)
        return
    found = ls.talo(loaded.model, scorer, asked.pool, **search, progress=not options.json, store=options.store)
    record |= found.to_dict()
    written = _write(found, record, options.output)
    _show(record, screen.paragraph(str(found)), asked, options)
    if not options.json:
        for path in written:
            print(f"written: {path}")


def _intervention(text: str) -> Any:
    """An intervention as it is written on the command line, and in findings.

    Examples:
        >>> _intervention("zero"), _intervention("scale(factor=0.5)")
        (Zero(), Scale(0.5))
    """
    from layersurgery.interventions import intervention_from_dict

    name, bracket, inside = text.partition("(")
    if not bracket:
        return intervention_from_dict({"name": text})
    wrong = TaskError(f"--do {text!r}: write a name, or a name and settings like 'scale(factor=0.5)'")
    try:
        call = ast.parse(f"dict({inside}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise wrong
        settings = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
    except (SyntaxError, ValueError) as error:
        raise wrong from error
    return intervention_from_dict({"name": name, **settings})


def _rule(options: argparse.Namespace) -> Any:
    import layersurgery as ls

    of_paper = options.shots is not None or options.prune
    kind = options.rule or ("paper" if of_paper else "halving")
    if kind == "halving" and of_paper:
        raise TaskError("--shots and --prune are for --rule paper; give --labels with --rule halving")
    if kind == "paper" and options.labels is not None:
        raise TaskError("--labels is for --rule halving; give --shots with --rule paper")
    if kind == "halving":
        return ls.HalvingRule(options.labels)
    return ls.PaperRule(options.shots or 20, prune=options.prune)


def _image_record(processor: Any) -> dict[str, Any] | None:
    """The settings by which pictures become what the model sees, as the processor would store them."""
    images = getattr(processor, "image_processor", None)
    return None if images is None else json.loads(images.to_json_string())


def _way_of_scoring(options: argparse.Namespace, asked: Questions) -> str:
    way = options.scorer
    if way is None:
        way = "choices" if asked.all_choices and options.extract is None else "generate"
    if way == "choices" and not asked.all_choices:
        raise TaskError("--scorer choices needs questions with options, and some have none; give --scorer generate")
    if way == "choices":
        for name in ("extract", "max_new_tokens"):
            if getattr(options, name) is not None:
                raise TaskError(f"--{name.replace('_', '-')} is for generated answers; give --scorer generate with it")
    return way


def _scorer(options: argparse.Namespace, asked: Questions, way: str, loaded: Any) -> tuple[Any, Any]:
    import layersurgery as ls
    from layersurgery.scoring import model_family, prompt_template

    style = options.prompt or asked.style
    prompt = prompt_template(style, family=model_family(loaded.model), overrides=asked.prompts.get(style))
    if way == "choices":
        return ls.ChoiceScorer(loaded.processor, batch_size=options.batch_size, prompt=prompt), prompt
    scorer = ls.GenerationScorer(
        loaded.processor,
        extract=options.extract or asked.extract,
        max_new_tokens=options.max_new_tokens or asked.max_new_tokens,
        batch_size=options.batch_size,
        prompt=prompt,
    )
    return scorer, prompt


def _show(record: dict[str, Any], text: str, asked: Questions, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(record))
        return
    print(text)
    for note in asked.notes:
        print(screen.paragraph(f"Note: {note}."), file=sys.stderr)


def _write(found: Any, record: dict[str, Any], output: str | None) -> list[Path]:
    if output is None:
        return []
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "finding.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return [path] if found.surgery is None else [path, found.surgery.save_pretrained(folder)]
