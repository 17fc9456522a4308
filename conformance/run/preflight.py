"""The preflight: one layer of the target is built before anything is judged, in a process that may die or hang."""

from __future__ import annotations

import json
import os
import select
import signal
from dataclasses import asdict
from typing import Any

from conformance.isolation import processes
from conformance.target.form_check import forms_of
from conformance.target.layer_form import LayerForm

SECONDS = 10.0  # for building a layer


def looked_at(target: Any, *, dora: bool) -> tuple[LayerForm, ...]:
    """The forms of a target's layers; none where building a layer hangs or ends the process, which clauses report."""
    dtype = target.dtypes[0] if target.dtypes else "float32"
    if target.device != "cpu":  # a GPU's driver does not survive a fork
        return forms_of(target, dtype, dora=dora)
    reads, writes = os.pipe()

    def look() -> None:
        os.write(writes, json.dumps([asdict(form) for form in forms_of(target, dtype, dora=dora)]).encode())

    number = processes.fork(look)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        written = pipe.read() if select.select([pipe], [], [], SECONDS)[0] else b""
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return tuple(LayerForm(**form) for form in json.loads(written or b"[]"))
