"""`layersurgery inspect`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from layersurgery.cli._load import load_empty


def inspect(options: argparse.Namespace) -> None:
    """Print the sites of a model."""
    from layersurgery.sites import Sites, select

    model = load_empty(options.model)
    sites = select(model, options.role, tower=options.tower, pattern=options.pattern)
    # "meta" is how it was loaded here, not what the model is like
    sites = Sites(replace(site, hazards=tuple(h for h in site.hazards if h != "meta")) for site in sites)
    if options.json:
        records = [site.to_dict() for site in sites]
        print(json.dumps({"model": options.model, "class": type(model).__name__, "sites": records}))
        return
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__}, {total:,} parameters, {len(sites)} sites\n\n{sites}")
