"""`layersurgery talo`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersurgery.cli import _screen as screen
from layersurgery.cli._load import load_model
from layersurgery.errors import TaskError
from layersurgery.tasks import Sample, load_samples

EMBEDDED_PROBE = 200
EMBEDDED_CONFIRM = 500


def talo(options: argparse.Namespace) -> None:
    """Search on one task, check, and say what was found."""
    import layersurgery as ls
    from layersurgery.interventions import intervention_from_dict

    do = intervention_from_dict({"name": options.do})
    samples, confirm = _samples(options)
    model, processor = load_model(options.model, dtype=options.dtype, device=options.device)
    scorer = (ls.ChoiceScorer if options.scorer == "choices" else ls.GenerationScorer)(
        processor, batch_size=options.batch_size
    )
    found = ls.talo(
        model,
        scorer,
        samples,
        at=ls.select(model, options.role, tower=options.tower),
        do=do,
        rule=ls.PaperRule(options.shots),
        confirm=confirm,
        seed=options.seed,
        progress=not options.json,
    )
    record = {"model": options.model, "task": options.task, "data": options.data, **found.to_dict()}
    written = _write(found, record, options.output)
    if options.json:
        print(json.dumps(record))
        return
    print(screen.paragraph(str(found)))
    for path in written:
        print(f"written: {path}")


def _samples(options: argparse.Namespace) -> tuple[list[Sample], int | Sequence[Any] | None]:
    if options.data is not None:
        return load_samples(options.data, task=options.task), options.confirm or None
    from layersurgery.embedded import TASKS, make_samples

    if options.task is None:
        raise TaskError(f"--task is needed without --data; the embedded tasks are {', '.join(TASKS)}")
    pool = make_samples(options.task, "probe", max(EMBEDDED_PROBE, 4 * options.shots))
    count = EMBEDDED_CONFIRM if options.confirm is None else options.confirm
    return pool, make_samples(options.task, "test", count) if count else None


def _write(found: Any, record: dict[str, Any], output: str | None) -> list[Path]:
    if output is None:
        return []
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "finding.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return [path] if found.surgery is None else [path, found.surgery.save_pretrained(folder)]
