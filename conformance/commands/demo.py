"""`loraspec demo`: train small models in every mode of a split model, or with several targets, and compare the runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output
from conformance.demo import train
from conformance.demo.session import BACKENDS, MODELS, MODES
from conformance.errors import UsageError


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    demo = commands.add_parser("demo", help="run a demo: fine-tuning, or training on data that stays encrypted")
    demos = demo.add_subparsers(dest="demo", required=True, metavar="DEMO")
    training = demos.add_parser("private-training", help="train an MLP and MiniLM in every mode, and compare")
    training.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for table, plot and JSON")
    training.add_argument("--model", default="all", help=f"{', '.join(MODELS)} or all (default)")
    training.add_argument("--steps", type=_steps, default=30, help="training steps of each run (default 30)")
    training.add_argument(
        "--modes", default=",".join(MODES), metavar="MODE[,MODE…]", help=f"only these modes: {', '.join(MODES)}"
    )
    training.add_argument(
        "--backend", default="toy", help=f"encryption parameters: {', '.join(BACKENDS)}; toy (default) is not secure"
    )
    training.add_argument("--seed", type=int, default=0, help="seed of data, batches and adapters (default 0)")
    training.add_argument("--implementation", default="optimized", metavar="MODULE", help="default optimized")
    _add_train(demos)


def _add_train(demos: output.Commands) -> None:
    tuning = demos.add_parser("train", help="fine-tune a model with several targets, including PEFT, and compare")
    tuning.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for table, plot, adapters")
    tuning.add_argument("--model", default="minilm", help=f"{' or '.join(train.MODELS)} (default minilm)")
    tuning.add_argument("--steps", type=_steps, default=50, help="training steps (default 50)")
    tuning.add_argument(
        "--targets",
        default=",".join(train.TARGETS),
        metavar="TARGET[,TARGET…]",
        help=f"default {','.join(train.TARGETS)}; others are modules with load_adapter and save_adapter",
    )
    tuning.add_argument("--seed", type=int, default=0, help="seed of model, texts and adapters (default 0)")


def execute(options: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code: 1 if encryption or the server failed, or if losses differ too much."""
    return {"private-training": _private_training, "train": _train}[options.demo](options)


def _train(options: argparse.Namespace) -> int:
    from conformance.demo import output as written
    from conformance.demo import target_comparison, train_output

    (model,) = _known([options.model], train.MODELS, "model")
    targets = tuple(dict.fromkeys(options.targets.split(",")))
    wanted = target_comparison.Wanted(model, options.steps, targets, options.seed)
    train.check_installed(wanted)
    for target in wanted.targets:
        train.parts_of(target)
    with written.reserved(options.out):
        found, learners = train.run(wanted)
        train_output.write(options.out, found, learners)
    train_output.show(found, options.out)
    return 0 if all(run.in_band for run in found.runs) else 1


def _private_training(options: argparse.Namespace) -> int:
    from conformance.demo import mode_comparison, session
    from conformance.demo import output as written
    from conformance.report.terminal import console
    from reference import EncryptionError, RemoteError

    modes = _known(options.modes.split(","), MODES, "mode")
    models = MODELS if options.model == "all" else _known([options.model], MODELS, "model")
    (backend,) = _known([options.backend], BACKENDS, "backend")
    wanted = mode_comparison.Wanted(models, modes, options.steps, backend, options.seed, options.implementation)
    session.check_installed(wanted)
    try:
        with written.reserved(options.out):
            found = session.run(wanted)
            written.write(options.out, found)
    except (EncryptionError, RemoteError) as error:
        console(stderr=True).print(f"loraspec: the demo stopped: {' '.join(str(error).split())}")
        return 1
    written.show(found, options.out)
    return 0


def _known(names: list[str], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The distinct names, in the order of `known`."""
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps: expected 1, 2, …")
    return int(text)
