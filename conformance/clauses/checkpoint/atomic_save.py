"""Atomic saves: the old files stay whole if a save fails or while another process reads them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conformance.clauses.checkpoint.peft_files import CONFIG, TENSORS, config_in, tensors_in
from conformance.clauses.checkpoint.target_calls import (
    ONE,
    PLAIN,
    FileCase,
    equal_bits,
    expected_tensors,
    folder,
    load,
    output,
    raised,
    save,
    trained,
)
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject

LARGE = PLAIN.narrowed(chosen=("all", "wildcard"), r=(9, 6))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A region in which writing a file beyond a size fails, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, was)


def saved_twice(subject: Subject, case: FileCase, path: Path) -> tuple[Any, Any, Any]:
    """Save an adapter: returns its model, and a second model with other values and alpha, with its config."""
    first, config = trained(subject, case)
    second, other = trained(subject, case, alpha=case.alpha + 1)
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            if "lora_" in name:
                parameter.add_(1)
    save(subject, first, config, path)
    return first, second, other


def _files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@clause(
    "CKP-WHOLE",
    sentence="""A save that fails for lack of disk space raises an error and leaves existing files unchanged bit for
    bit. In an empty folder it leaves neither adapter_config.json nor adapter_model.safetensors.""",
    why="An interrupted save must not destroy the last good checkpoint.",
    cases=LARGE.narrowed(how=("older files", "an empty folder"), place=(4, 2, 1)),
    dtypes=ONE,
)
def test_failed_save(subject: Subject, case: FileCase) -> None:
    with folder() as path, folder() as empty:
        first, second, config = saved_twice(subject, case, Path(path))
        before = _files(Path(path)) if case.how == "older files" else {}
        target = Path(path if case.how == "older files" else empty)
        # the largest file exceeds the limit by 1/place of the tensors' size; a smaller file may fit
        limit = max(len(data) for data in _files(Path(path)).values()) - len(_files(Path(path))[TENSORS]) // case.place
        with files_up_to(max(limit, 16)):
            error = raised(lambda: subject.target.save_adapter(second, config, str(target)))
        if error is None and _files(target).get(TENSORS) != before.get(TENSORS):
            _require_whole(target, second)
            raise Inconclusive("the new files fit")
        require(isinstance(error, Exception), f"save_adapter onto a full disk raised {error!r}: expected an error")
        after = _files(target)
        for name, data in before.items():
            require(after.get(name) == data, f"save_adapter: {name} is no longer what it was before a save that failed")
        parts = [name for name in after if name not in before and name in (CONFIG, TENSORS)]
        require(not parts, f"save_adapter: a save that failed left {', '.join(parts)} where there was nothing")
        if case.how == "older files":
            model, _ = trained(subject, case)
            load(subject, model, path)
            require(
                equal_bits(output(model), output(first)), "save_adapter: what was saved before does not load any more"
            )


def _require_whole(path: Path, model: Any) -> None:
    """Require that a save which raised no error wrote the model's whole adapter."""
    found, expected = tensors_in(path), expected_tensors(model)
    config_in(path)
    whole = set(found) == set(expected) and all(equal_bits(found[name], tensor) for name, tensor in expected.items())
    require(whole, f"save_adapter onto a full disk raised nothing, and {TENSORS} is not what was to be saved")


@clause(
    "CKP-READER",
    sentence="""A reader that has a saved file open keeps reading its old contents: a later save replaces the file and
    does not overwrite it.""",
    cases=LARGE,
    dtypes=ONE,
    weight=0.5,
)
def test_open_files(subject: Subject, case: FileCase) -> None:
    with folder() as path:
        _, second, config = saved_twice(subject, case, Path(path))
        before = _files(Path(path))[TENSORS]
        with Path(path, TENSORS).open("rb") as handle:
            save(subject, second, config, path)
            seen = handle.read()
        require(_files(Path(path))[TENSORS] != before, "save_adapter: the second save changed nothing")
        require(
            seen == before, f"save_adapter wrote {TENSORS} in place: a reader of the older file sees the new one in it"
        )


@clause(
    "CKP-LEFTOVERS",
    sentence="Neither a successful nor a failed save leaves temporary files behind.",
    cases=LARGE.narrowed(how=("saved", "failed")),
    dtypes=ONE,
    level=SHOULD,
    weight=0.5,
)
def test_leftovers(subject: Subject, case: FileCase) -> None:
    with folder() as path:
        _, second, config = saved_twice(subject, case, Path(path))
        before = sorted(_files(Path(path)))
        if case.how == "failed":
            with files_up_to(16):
                error = raised(lambda: subject.target.save_adapter(second, config, str(path)))
            require(isinstance(error, Exception), f"save_adapter onto a full disk raised {error!r}: expected an error")
        else:
            save(subject, second, config, path)
        left = sorted(set(_files(Path(path))) - set(before))
        how = "failed" if case.how == "failed" else "was done"
        require(not left, f"save_adapter: a save that {how} left {', '.join(left)} behind")
