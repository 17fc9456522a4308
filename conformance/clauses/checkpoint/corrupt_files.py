"""Corrupt files, pickles and links in place of a saved adapter: refused, with the model unchanged."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.clauses.checkpoint.peft_files import CONFIG, TENSORS, framed, put
from conformance.clauses.checkpoint.refusals import BROAD, prepared
from conformance.clauses.checkpoint.target_calls import ONE, FileCase, fails, folder, load
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "the last byte missing": lambda data: data[:-1],
    "half of it missing": lambda data: _cut(data, 0.5),
    "a header that is cut": lambda data: data[:40],
    "no byte": lambda data: b"",  # noqa: ARG005
    "seven bytes": lambda data: data[:7],
    "a byte too many": lambda data: data + b"\0",
    "a megabyte too many": lambda data: data + b"\0" * 2**20,
    "a header of 2^62 bytes": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "a header that is no JSON": lambda data: data[:8] + b"x" + data[9:],
    "a header that is a list": lambda data: framed("[]", data[8 + int.from_bytes(data[:8], "little") :]),
    "shapes that overflow": lambda data: framed(  # noqa: ARG005
        json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}), b""
    ),
    "values beyond its end": lambda data: framed(  # noqa: ARG005
        json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [2**40, 2**40 + 16]}}), b""
    ),
    "a pickle in it": lambda data: pickle.dumps({"weight": list(data[:20])}),
}
DAMAGED_CONFIG: dict[str, Callable[[bytes], bytes]] = {
    "half of the config": lambda data: _cut(data, 0.5),
    "an empty config": lambda data: b"",  # noqa: ARG005
    "a config that is a list": lambda data: b"[" + data + b"]",
    "a config that is no text": lambda data: b"\xff\xfe\xff" + data,
    "a config nested without end": lambda data: b'{"r":' + b"[" * 100_000,  # noqa: ARG005
}


@clause(
    "CKP-DAMAGED",
    sentence="""A file that is truncated, longer than it declares, or not valid safetensors or JSON raises an
    Exception, and the model stays unchanged.""",
    cases=BROAD.narrowed(place=tuple(range(len(DAMAGED) + len(DAMAGED_CONFIG)))),
    dtypes=ONE,
)
def test_damaged(subject: Subject, case: FileCase) -> None:
    model, values, tensors = prepared(subject, case)
    every = [*((TENSORS, *item) for item in DAMAGED.items()), *((CONFIG, *item) for item in DAMAGED_CONFIG.items())]
    for offset in range(3):
        file, what, damage = every[(case.place + 6 * offset) % len(every)]
        with folder() as path:
            put(Path(path), values, tensors)
            Path(path, file).write_bytes(damage(Path(path, file).read_bytes()))
            fails(subject, model, Path(path), f"a file with {what}")


@clause(
    "CKP-ABSENT-FILES",
    sentence="If the folder or one of its two files does not exist, load_adapter raises an error that names it.",
    cases=BROAD.narrowed(how=(CONFIG, TENSORS, "the folder")),
    dtypes=ONE,
    weight=0.5,
)
def test_absent(subject: Subject, case: FileCase) -> None:
    model, values, tensors = prepared(subject, case)
    with folder() as path:
        put(Path(path), values, tensors)
        if case.how == "the folder":
            fails(subject, model, Path(path, "elsewhere"), "a folder that is not there", "elsewhere")
            return
        Path(path, case.how).unlink()
        fails(subject, model, Path(path), f"a folder without {case.how}", case.how.partition(".")[0])


class Bomb:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


@clause(
    "CKP-PICKLE",
    sentence="A pickle in place of the tensors, or an adapter_model.bin without them, is refused and never unpickled.",
    why="Unpickling a file runs any code that it contains.",
    cases=BROAD.narrowed(how=("in place", "zipped in place", "beside", "zipped beside")),
    dtypes=ONE,
    weight=0.67,
)
def test_pickle(subject: Subject, case: FileCase) -> None:
    model, values, tensors = prepared(subject, case)
    with folder() as path:
        put(Path(path), values, tensors)
        mark = Path(path, "unpickled")
        target = Path(path, TENSORS if "place" in case.how else "adapter_model.bin")
        Path(path, TENSORS).unlink()
        bomb = pickle.dumps(Bomb(str(mark)))
        if "zipped" in case.how:
            with zipfile.ZipFile(target, "w") as archive:
                archive.writestr("archive/data.pkl", bomb)
                archive.writestr("archive/version", "3")
        else:
            target.write_bytes(bomb)
        fails(subject, model, Path(path), f"a pickle {case.how} of {TENSORS}")
        require(not mark.exists(), f"load_adapter unpickled {target.name}, which ran what was in it")


@clause(
    "CKP-LINK",
    sentence="""A file that is a link to a place outside the folder is refused, except for links to ../../blobs as in
    a Hugging Face cache.""",
    why="A downloaded folder could otherwise make load_adapter read any file of the user.",
    cases=BROAD.narrowed(how=(CONFIG, TENSORS, "cache")),
    dtypes=ONE,
    level=SHOULD,
    weight=0.5,
)
def test_links(subject: Subject, case: FileCase) -> None:
    model, values, tensors = prepared(subject, case)
    with folder() as path:
        if case.how == "cache":
            blobs, inner = Path(path, "blobs"), Path(path, "snapshots", "main")
            for made in (blobs, inner):
                made.mkdir(parents=True)
            put(blobs, values, tensors)
            for name in (CONFIG, TENSORS):
                (inner / name).symlink_to(Path("..", "..", "blobs", name))
            load(subject, model, inner)
            return
        outside, inner = Path(path, "outside"), Path(path, "inner")
        for made in (outside, inner):
            made.mkdir()
        put(outside, values, tensors)
        put(inner, values, tensors)
        (inner / case.how).unlink()
        (inner / case.how).symlink_to(outside / case.how)
        fails(subject, model, inner, f"{case.how} that is a link out of its folder")
