"""`layersurgery inspect`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from layersurgery.cli._load import load_empty


def inspect(options: argparse.Namespace) -> None:
    """Print a model's anatomy; or, where a role, a tower or a pattern is given, the sites that these select."""
    model = load_empty(options.model)
    if options.role or options.tower or options.pattern:
        _print_sites(model, options)
    else:
        _print_anatomy(model, options)


def _print_anatomy(model: object, options: argparse.Namespace) -> None:
    from layersurgery.inspection import inspect as anatomy_of

    anatomy = anatomy_of(model)
    print(json.dumps({"model": options.model, **anatomy.to_dict()}) if options.json else anatomy)


def _print_sites(model: object, options: argparse.Namespace) -> None:
    from layersurgery.sites import Sites, select

    sites = select(model, options.role, tower=options.tower, pattern=options.pattern)
    # "meta" is how it was loaded here, not what the model is like
    sites = Sites(replace(site, hazards=tuple(h for h in site.hazards if h != "meta")) for site in sites)
    if options.json:
        records = [site.to_dict() for site in sites]
        print(json.dumps({"model": options.model, "class": type(model).__name__, "sites": records}))
    else:
        print(f"{type(model).__name__}, {len(sites)} sites\n\n{sites}")
