"""Arguments in, exit code out. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from layersurgery import __version__
from layersurgery.errors import LayerSurgeryError, TaskError

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


def _run(options: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if options.command == "inspect":
        from layersurgery.cli._inspect import inspect

        inspect(options)
    elif options.command == "talo":
        from layersurgery.cli._talo import talo

        talo(options)
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
        description="Task-Adaptive Layer Knockout: search on a small probe set, then check on held-out samples. "
        "Without --data, TASK is one of the embedded benchmark's, and the check is on its test split.",
    )
    _add_model(parser)
    parser.add_argument(
        "--task", metavar="TASK", help="the task; needed without --data, which it narrows down otherwise"
    )
    parser.add_argument("--data", metavar="FILE", help="labelled questions of your own (.jsonl or .parquet)")
    parser.add_argument("--shots", type=_count, default=20, metavar="N", help="probe samples of the first round (20)")
    parser.add_argument(
        "--confirm", type=_count_or_0, metavar="N", help="held-out samples for the check (embedded: 500; own data: 0)"
    )
    parser.add_argument("--do", default="zero", metavar="NAME", help="zero (the default), uniform, mean, noise, ...")
    _add_where(parser)
    parser.add_argument("--scorer", choices=["choices", "generate"], default="choices", help="how answers are read")
    parser.add_argument("--batch-size", type=_count, default=16, metavar="N", help="samples in one forward pass (16)")
    parser.add_argument("--seed", type=_count_or_0, default=0, metavar="N", help="seed of all draws (0)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16, or auto (the default)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ..., or auto (the default)")
    parser.add_argument("--output", metavar="DIR", help="write surgery.json and finding.json there")
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


def _add_where(parser: argparse.ArgumentParser) -> None:
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


def _count_or_0(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value
