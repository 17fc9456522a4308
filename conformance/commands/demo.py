"""`loraspec demo`: train small models in every mode of a split model, or with several targets, and compare the runs."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from conformance.bench import cases
from conformance.commands import output
from conformance.demo import mode_comparison, train
from conformance.demo.mode_comparison import FEW_STEPS, PACKED, STEPS
from conformance.demo.session import BACKENDS, MODELS, MODES
from conformance.errors import UsageError, known


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    demo = commands.add_parser("demo", help="run a demo: fine-tuning, or training on data that stays encrypted")
    demos = demo.add_subparsers(dest="demo", required=True, metavar="DEMO")
    training = demos.add_parser("private-training", help="train an MLP and MiniLM in every mode, and compare")
    training.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for table, plot and JSON")
    training.add_argument("--model", default="all", help=f"{', '.join(MODELS)} or all (default)")
    training.add_argument(
        "--steps", type=_steps, help=f"training steps of each run (default {STEPS}, encrypted transformers {FEW_STEPS})"
    )
    training.add_argument(
        "--modes", default=",".join(MODES), metavar="MODE[,MODE…]", help=f"only these modes: {', '.join(MODES)}"
    )
    training.add_argument(
        "--backend", help=f"{', '.join(BACKENDS)}; default seal, if installed, otherwise toy, which is not secure"
    )
    file: dict[str, Any] = {"metavar": "FILE"}
    training.add_argument(
        "--certificate", **file, help="mode remote speaks TLS with this certificate of 127.0.0.1, PEM"
    )
    training.add_argument("--private-key", **file, help="its key, PEM without a password")
    training.add_argument("--ca", **file, help="the authority of the certificate; default itself")
    training.add_argument("--seed", type=int, default=0, help="seed of data, batches and adapters (default 0)")
    training.add_argument("--implementation", default="optimized", metavar="MODULE", help="default optimized")
    _add_train(demos)
    _add_costs(demos)


def _add_train(demos: output.Commands) -> None:
    tuning = demos.add_parser("train", help="fine-tune a model with several targets, including PEFT, and compare")
    tuning.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for table, plot, adapters")
    tuning.add_argument("--model", help=f"{' or '.join(train.MODELS)} (default minilm; with --base llama)")
    packed = "pack the adapted layers (QLoRA), beside float layers of the same numbers: nf4, fp4, int8_torchao, …"
    tuning.add_argument("--base", default="", metavar="FORMAT", help=packed)
    tuning.add_argument("--steps", type=_steps, default=50, help="training steps (default 50)")
    tuning.add_argument(
        "--targets",
        metavar="TARGET[,TARGET…]",
        help=f"default {','.join(train.TARGETS)} (with --base {','.join(train.PACKED_TARGETS)}); others are modules "
        f"with {' and '.join(train.NAMES)}, and with --base packed_linear",
    )
    tuning.add_argument("--seed", type=int, default=0, help="seed of model, texts and adapters (default 0)")


def _add_costs(demos: output.Commands) -> None:
    costs = demos.add_parser("encryption-costs", help="the cost of an encrypted product under each backend")
    costs.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the table and JSON")
    costs.add_argument(
        "--backends", default=",".join(BACKENDS), metavar="NAME[,NAME…]", help=f"only these: {', '.join(BACKENDS)}"
    )
    costs.add_argument("--shapes", nargs="+", type=_shape, metavar="MxKxN", help="M rows, K in, N out")


def execute(options: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code: 1 if encryption or the server failed, or if losses differ too much."""
    demos = {"private-training": _private_training, "train": _train, "encryption-costs": _encryption_costs}
    return demos[options.demo](options)


def _train(options: argparse.Namespace) -> int:
    from conformance.demo import output as written
    from conformance.demo import target_comparison, train_output

    base = options.base
    if base:
        from conformance.clauses.quantised.case import PACKABLE

        known([base], PACKABLE, "format")
    (model,) = _known([options.model or ("llama" if base else "minilm")], train.MODELS, "model")
    given = (train.PACKED_TARGETS if base else train.TARGETS) if options.targets is None else options.targets.split(",")
    targets = tuple(dict.fromkeys(given))
    wanted = target_comparison.Wanted(model, options.steps, targets, options.seed, base)
    train.check_installed(wanted)
    for target in wanted.targets:
        train.parts_of(target, base)
    of_peft = _bitsandbytes() if base and "peft" in targets else None
    with written.reserved(options.out):
        found, learners = train.run(wanted, of_peft)
        train_output.write(options.out, found, learners)
    train_output.show(found, options.out)
    return 0 if all(run.in_band for run in found.runs) else 1


def _bitsandbytes() -> Any:
    """The module whose packed layers PEFT adapts.

    Raises:
        UsageError: if bitsandbytes is installed in another version, and lacks a name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import warns about devices
            from conformance.targets import bitsandbytes_base
    except ImportError as error:
        raise UsageError(str(error)) from error
    return bitsandbytes_base


def _private_training(options: argparse.Namespace) -> int:
    from conformance.demo import output as written
    from conformance.demo import session
    from conformance.report.terminal import console
    from reference import EncryptionError, RemoteError

    modes = _known(options.modes.split(","), MODES, "mode")
    models = MODELS if options.model == "all" else _known([options.model], MODELS, "model")
    (backend,) = _known([options.backend or session.default_backend()], BACKENDS, "backend")
    wanted = mode_comparison.Wanted(
        models, modes, options.steps, backend, options.seed, options.implementation, _tls(options)
    )
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


def _encryption_costs(options: argparse.Namespace) -> int:
    from conformance.demo import encryption_costs, needed
    from conformance.demo import output as written
    from conformance.report.terminal import console

    backends = _known(options.backends.split(","), BACKENDS, "backend")
    needed.packages({"seal" if name in PACKED else "concrete_ml_extensions": "fhe" for name in backends})
    with written.reserved(options.out):
        found = encryption_costs.costs(
            backends, tuple(options.shapes or encryption_costs.SHAPES), console(stderr=True).print
        )
        encryption_costs.write(options.out, found)
    console().print(encryption_costs.markdown(found), markup=False, soft_wrap=True)
    console().print(f"written to {options.out}: encryption-costs.json, encryption-costs.md")
    return 0


def _shape(text: str) -> tuple[int, int, int]:
    try:
        return cases.shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tls(options: argparse.Namespace) -> mode_comparison.TLS | None:
    """The files of TLS, or None if none is given."""
    given = {"--certificate": options.certificate, "--private-key": options.private_key, "--ca": options.ca}
    if not any(given.values()):
        return None
    for option in ("--certificate", "--private-key"):
        if given[option] is None:
            raise UsageError(f"{option} is missing: TLS needs --certificate and --private-key")
    for option, file in given.items():
        if file is not None and not Path(file).is_file():
            raise UsageError(f"{option} {file!r} is no file: expected one in PEM format")
    return mode_comparison.TLS(options.certificate, options.private_key, options.ca or options.certificate)


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
