"""A failing check as a standalone script: the check, all code that it uses, and a `main` that runs it on one case."""

from __future__ import annotations

import ast
import dataclasses

from conformance.cases.case import Case
from conformance.cases.reproducer_marks import CONFIG_CLASS, full_name
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.judgement.result import Result
from conformance.reproducer.drawn_values import is_drawing, looked_up
from conformance.reproducer.module_source import Definition, Import, Lines, defined, literal, source
from conformance.reproducer.module_writer import Text
from conformance.reproducer.source_bundle import Bundle
from conformance.specification.clause import Clause
from conformance.target.subject import Subject

LOCALS = ("main", "target", "subject", "case", "outcome")  # names in the lines around the check
NUMPY, RANDOM = Import("numpy", name="np"), Import("random", name="random")
SYS, TORCH = Import("sys", name="sys"), Import("torch", name="torch")
# If the target has a PeftConfig, this function replaces the one marked `chooses_config`, which needs the reference.
OWN_CONFIG = '''
def config_class(subject: Subject) -> Any:
    """The target's PeftConfig."""
    return subject.target.PeftConfig
'''


def replay(clause: Clause, subject: Subject, target: str, result: Result, header: str) -> str:
    """The script, which exits with 1 while the defect is present and with 0 once it is fixed.

    Args:
        target: the import name of the target, `package.module` or `package.module:attribute`.
        header: the beginning of the script's docstring.
    Raises:
        NoSource: if the source of the check, or of code that it uses, is not available.
    """
    case = clause.cases.case_type.parse(result.case or "")
    check = defined(clause.check)
    kinds = [defined(kind) for kind in (type(case), type(subject), Violation, Refused, Inconclusive)]
    roots: list[Definition | Import] = [check, *kinds, NUMPY, RANDOM, SYS, TORCH]
    instead = _own_config(subject)
    bundle = Bundle(roots, instead)
    if is_drawing(bundle.pieces) and (numbers := looked_up(clause, subject, case)):
        bundle = Bundle(roots, numbers | instead)
    text = Text(bundle, LOCALS)
    interpreted = 'import os\n\nos.environ["TRITON_INTERPRET"] = "1"\n\n' if subject.lane == "interpreter" else ""
    guide = f"The check `{text.name(check)}` is the first definition; `main`, at the end, runs it on the case."
    parts = [
        f'"""{header}\n\n{guide}\n"""',
        f"from __future__ import annotations\n\n{interpreted}{text.imports}",
        f'{text.name(SYS)}.path.insert(0, "")  # the current folder\n' + "\n".join(importing(target)),
        "\n" + text.body,
        "\n" + _main(clause, subject, case, text, check, kinds),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def importing(target: str) -> list[str]:
    """Lines that import the target under the name `target`."""
    module, _, attribute = target.partition(":")
    package, _, last = module.rpartition(".")
    imported = f"from {package} import {last} as target" if package else f"import {last} as target"
    return [f"{imported}  # noqa: E402", "", *([f"target = target.{attribute}"] if attribute else [])]


def _own_config(subject: Subject) -> dict[str, Definition]:
    if not hasattr(subject.target, "PeftConfig"):
        return {}
    return {
        full_name(chosen): Definition(source(chosen.__module__), ast.parse(OWN_CONFIG).body[0], Lines(OWN_CONFIG))
        for chosen in CONFIG_CLASS
    }


def _main(clause: Clause, subject: Subject, case: Case, text: Text, check: Definition, kinds: list[Definition]) -> str:
    """The lines around the check; they seed and set up what `check_case` and `Trial` do."""
    case_type, subject_type, violation, refused, inconclusive = map(text.name, kinds)
    random, np, torch, sys = map(text.name, (RANDOM, NUMPY, TORCH, SYS))
    given = [f"{f.name}={literal(getattr(case, f.name))}" for f in dataclasses.fields(case) if _is_shown(case, f)]
    where = ", ".join(
        map(
            literal,
            (subject.device, subject.lane, subject.dropout_positions, subject.conventions)[
                : 4 if subject.conventions else 3
            ],
        )
    )
    return f'''def main() -> int:
    """Run the check on the case; return 1 while the defect is present, else 0."""
    {torch}.set_num_threads(1)
    {random}.seed({case.seed})
    {np}.random.seed({case.seed % 2**32})
    {torch}.manual_seed({case.seed})
    subject = {subject_type}({literal(subject.name)}, target.{subject.name}, target, {where})
    case = {case_type}({", ".join(given)})
    try:
        {text.name(check)}(subject, case)
    except ({violation}, {refused}) as outcome:
        print(f"{clause.id}: {{outcome}}")
        return 1
    except {inconclusive} as outcome:
        print(f"{clause.id}: this case no longer decides anything: {{outcome}}")
        return 0
    print("{clause.id}: this case is right")
    return 0


if __name__ == "__main__":
    {sys}.exit(main())
'''


def _is_shown(case: Case, field: dataclasses.Field[object]) -> bool:
    """Whether the script gives the field, as the case's own text does: sizes, and values other than the default."""
    value = getattr(case, field.name)
    return (type(value) is int and field.name != "seed") or value != field.default
