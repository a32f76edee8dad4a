"""Arguments in, exit code out. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from layersurgery import __version__
from layersurgery.errors import LayerSurgeryError, LayerSurgeryWarning, TaskError

DONE, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; None: those of this process.

    Returns:
        0: done; 1: the job failed or was interrupted; 2: wrong usage.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as leaving:  # argparse leaves by itself, after --help and after a wrong word
        return leaving.code if isinstance(leaving.code, int) else USAGE
    try:
        with _plain_warnings():
            _run(options)
    except KeyboardInterrupt:
        return _say("interrupted; the model was restored, nothing was written over", FAILED)
    except TaskError as error:
        return _failed(error, USAGE, options.debug)
    except Exception as error:
        return _failed(error, FAILED, options.debug)
    return DONE


def _failed(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        raise error
    kind = "" if isinstance(error, LayerSurgeryError) else f"{type(error).__name__}: "
    return _say(f"{kind}{' '.join(str(error).split())}", code)


def _say(message: str, code: int) -> int:
    print(f"layersurgery: {message}", file=sys.stderr)
    return code


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings are for the user, who needs no line of code with them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, LayerSurgeryWarning):
                _say(" ".join(str(message).split()), DONE)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = say
        yield


def _run(options: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if options.command == "inspect":
        from layersurgery.cli._inspect import inspect

        inspect(options)
    elif options.command == "talo":
        from layersurgery.cli._talo import talo

        talo(options)
    elif options.command == "tasks":
        from layersurgery.cli._tasks import tasks

        tasks(options)
    else:
        from layersurgery.cli._demo import demo

        demo(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layersurgery",
        description="Find the parts of a model that hurt a task, and take them out - reversibly.",
    )
    parser.add_argument("--version", action="version", version=f"layersurgery {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_talo(commands)
    _add_tasks(commands)
    _add_demo(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what a model is made of, and where it can be operated on",
        description="Show a model's towers, layers and sites as a tree, with what a surgery would do there; or, with "
        "--role, --tower or --pattern, a table of the sites that these select. No weights are loaded.",
    )
    _add_model(parser)
    _add_where(parser)
    parser.add_argument(
        "--pattern", metavar="GLOB", help="module names instead of a role, such as '*.self_attn.o_proj'"
    )
    _add_common(parser)


def _add_talo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "talo",
        help="find the layer whose knock-out helps a task",
        description="Task-Adaptive Layer Knockout: search on a small probe set, then check on held-out samples. The "
        "questions are a benchmark's, your own, or, with neither --benchmark nor --data, the embedded benchmark's.",
    )
    _add_model(parser)
    _add_questions(parser.add_argument_group("questions"))
    search = parser.add_argument_group("search")
    search.add_argument("--rule", choices=["halving", "paper"], help="how to decide (halving, or paper with --shots)")
    search.add_argument(
        "--labels", type=_count, metavar="N", help="halving: most samples for the search (up to 200 of those there are)"
    )
    search.add_argument("--shots", type=_count, metavar="N", help="paper: probe samples of the first round (20)")
    search.add_argument(
        "--prune",
        action="store_true",
        help="paper: do not evaluate sites further that can no longer win: same choice, sooner",
    )
    search.add_argument(
        "--confirm",
        type=_count_or_0,
        metavar="N",
        help="held-out samples for the check (benchmark: all that the search cannot need; own data: 0; embedded: 500)",
    )
    search.add_argument(
        "--store", metavar="FILE", help="keep every score in this file, and go on from what is there already"
    )
    search.add_argument(
        "--do",
        nargs="+",
        default=["zero"],
        metavar="NAME",
        help="zero (the default), uniform, mean, noise, 'scale(factor=0.5)', ...; several compete at every site",
    )
    search.add_argument("--max-sites", type=_count, default=1, metavar="N", help="most sites to knock out together (1)")
    search.add_argument(
        "--beam", type=_count, default=1, metavar="N", help="with --max-sites: how many sets of a size to extend (1)"
    )
    _add_where(search)
    search.add_argument("--seed", type=_count_or_0, default=0, metavar="N", help="seed of all draws (0)")
    search.add_argument(
        "--dry-run", action="store_true", help="say how many evaluations, how long and how much memory it would take"
    )
    _add_scoring(parser.add_argument_group("asking and reading"))
    _add_loading(parser.add_argument_group("loading the model"))
    parser.add_argument("--output", metavar="DIR", help="write surgery.json and finding.json there")
    _add_common(parser)


def _add_questions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--benchmark", metavar="NAME", help="mmstar, mmbench, mmmu, ... (see 'layersurgery tasks'), or a TOML file"
    )
    group.add_argument(
        "--data", metavar="PATH", help="labelled questions of your own: .jsonl, .csv, .parquet, a folder"
    )
    group.add_argument(
        "--task", metavar="TASK", help="one task of them, or DIVISION=VALUE of a benchmark; all without it"
    )
    group.add_argument("--source", metavar="PATH", help="the benchmark's local copy, or another hub id of it")
    group.add_argument("--data-revision", metavar="REV", help="branch, tag or commit of the benchmark on the hub")
    group.add_argument("--limit", type=_count, metavar="N", help="read at most N questions")
    group.add_argument("--streaming", action="store_true", help="read them one by one, without downloading all")
    group.add_argument(
        "--circular", action="store_true", help="a question counts as right if all orders of its options are (mmbench)"
    )


def _add_scoring(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scorer",
        choices=["choices", "generate"],
        help="by the likeliest option letter (default where all questions have options), or by the generated text",
    )
    group.add_argument(
        "--prompt", metavar="STYLE", help="vlmevalkit (default for benchmarks), lmms-eval or plain (for other data)"
    )
    group.add_argument(
        "--extract", metavar="RULE", help="how text is read: letters-v1, vlmevalkit-2024, mmmu-v1, mathvista-v1"
    )
    group.add_argument("--max-new-tokens", type=_count, metavar="N", help="longest generated answer (the benchmark's)")
    group.add_argument(
        "--batch-size",
        type=_count_or_auto,
        default=16,
        metavar="N",
        help="samples in one forward pass (16), or auto: as many as there is memory for, up to 64",
    )


def _add_loading(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto (the default)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ..., or auto (the default)")
    group.add_argument(
        "--device-map", metavar="MAP", help="spread the model over devices: auto, balanced, ..., or JSON"
    )
    group.add_argument(
        "--image-settings",
        metavar="JSON",
        help='fields of the image processor to set, such as \'{"size": {"shortest_edge": 336}}\'',
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of the model on the hub")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def _add_tasks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tasks",
        help="list the benchmarks and their tasks",
        description="List the benchmarks and their tasks, with how many questions each has; or all about one of them.",
    )
    parser.add_argument("benchmark", nargs="?", metavar="BENCHMARK", help="one of them, or a TOML file of your own")
    parser.add_argument("--source", metavar="PATH", help="count in this local copy what there really is")
    _add_common(parser)


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole way, on a tiny trained model that comes along",
        description="Find, cut out, save, reload and restore layers of the embedded vision-language model, in about a "
        "minute on two cores.",
    )
    parser.add_argument("--output", default="demo-output", metavar="DIR", help="where files go (demo-output)")
    parser.add_argument("--seed", type=_count_or_0, default=0, metavar="N", help="seed of the probe draws (0)")
    _add_common(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face hub id, a local folder, or the embedded 'natural' or 'planted'"
    )


def _add_where(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--role", choices=["attention", "mlp", "layer"], help="which part of each layer (attention)")
    parser.add_argument("--tower", metavar="TOWER", help="language (the default), vision, audio, encoder, decoder, ...")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _count(text: str) -> int:
    value = _count_or_0(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _count_or_auto(text: str) -> int | str:
    try:
        return text if text == "auto" else _count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of at least 1 nor auto") from None


def _count_or_0(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value
