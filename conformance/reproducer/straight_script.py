"""A straight script: the steps of a failing check as torch code, and the comparison that fails."""

from __future__ import annotations

import ast
import copy
import keyword
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from conformance.reproducer.compact_code import compact
from conformance.reproducer.condition import violated
from conformance.reproducer.failing_end import end
from conformance.reproducer.module_source import defined
from conformance.reproducer.module_writer import Text
from conformance.reproducer.plain_region import plain_regions
from conformance.reproducer.script_imports import deeper_modules, is_local, is_used, public_place, resolved
from conformance.reproducer.session_source import is_of_session, session_source
from conformance.reproducer.source_bundle import Bundle
from conformance.reproducer.steps import Failure, Step
from conformance.reproducer.tape import Tape

FILLED = ("torch.set_deterministic_debug_mode('warn')  # torch.empty gives NaN, so that unwritten elements show",)
PLACED = '''
def placed(values, stride):
    """The values as a view with these strides."""
    extent = sum((n - 1) * s for n, s in zip(values.shape, stride)) + 1
    view = torch.full((extent,), float("nan"), dtype=values.dtype).as_strided(values.shape, stride)
    return view.copy_(values) if 0 not in stride else values[:1].expand(values.shape)
'''
MODULES = ("contextlib", "copy", "math", "os", "pickle", "random", "sys", "tempfile", "warnings")
ALIASES = {"np": "import numpy as np"} | {name: f"import {name}" for name in MODULES}
PLACEHOLDER = re.compile(r"_(target|import|suite)_(.*)", re.DOTALL)


@dataclass
class Options:
    """What a script has in it besides the steps that show the defect.

    Attributes:
        strided: whether operands keep their strides.   filled: whether `torch.empty` gives NaN.
        right: whether the script calls `reference` in place of the target.
        seeded: whether large operands are drawn anew, from a seed.
    """

    strided: bool = False
    filled: bool = False
    right: bool = False
    seeded: bool = False


@dataclass
class Script:
    """A script to be written.

    Attributes:
        header: its docstring.   target: the import name of the target.   title: the clause's id.
        message: what the suite said.
    """

    tape: Tape
    failure: Failure
    header: str
    target: str
    title: str
    message: str
    interpreted: bool = False
    imports: dict[str, None] = field(default_factory=dict)
    inlined: dict[str, ast.expr] = field(default_factory=dict)
    definitions: str = ""  # of the suite, as the last text had them
    shorter: str | None = None  # definitions in place of those

    def __post_init__(self) -> None:
        self.condition = self.failure.condition
        if self.failure.kind == "required" and self.condition is None:
            self.condition = violated(self.tape, self.failure)
        expected = self.failure.expected
        self.expected = self._known(expected.value) if expected is not None else None
        self.budget = self._known(expected.budget) if expected is not None else None

    def _known(self, value: Any) -> ast.expr | None:
        """The code for a value, if it comes from what the target gave."""
        return self.tape.say(value) if self.tape.say.knows(value) else None

    @property
    def roots(self) -> list[ast.AST]:
        """The code that tells whether the defect is there."""
        called = self.failure.step.node if self.failure.step is not None else None
        found: list[ast.AST | None] = [self.condition, self.failure.actual, self.expected, self.budget, called]
        return [node for node in found if node is not None]

    def text(self, steps: list[Step], options: Options) -> str:
        """The script with these steps.

        Raises:
            Unsayable, ValueError: if a value has no code.
        """
        self.imports, self.session = {}, list[str]()
        self.names = self._chosen_names(steps)
        self.folded = self._folded(steps)
        self.suite, self.options = {}, options  # type: ignore[var-annotated]
        body = [*self._steps(steps), *end(self)]
        session = [line for text in self.session for line in ("", "", text)] + ([""] if self.session else [])
        placed = [PLACED] if any("placed(" in line for line in body) else []
        helpers, named = self._helpers()
        body = self.wrapped([named(line) for line in body])
        self.imports |= dict.fromkeys(f"import {name}" for name in deeper_modules(body))
        imports = [*dict.fromkeys([*self._used_aliases([*body, *helpers]), "import torch", *self.imports])]
        plain = sorted(line for line in imports if line.startswith("import ") and line != "import torch")
        others = sorted(line for line in imports if not line.startswith("import "))
        first = ["import os", "", 'os.environ["TRITON_INTERPRET"] = "1"'] if self.interpreted else []
        if any(is_local(line) for line in self.imports):
            first += ["import sys", 'sys.path.insert(0, "")  # the current folder']
        lines = [f'"""{self.header}\n"""', "", *first, *plain, "import torch", *others, *placed, *helpers, *session, ""]
        lines += [*(FILLED if options.filled else ()), *body]
        return "\n".join(lines) + "\n"

    def wrapped(self, body: list[str]) -> list[str]:
        """The lines of the body, ready to run."""
        return body

    def _chosen_names(self, steps: list[Step]) -> dict[str, str]:
        """A name for each variable that the script has: its hint, with a number where several have the same."""
        used = {name for node in [*self.roots, *(s.node for s in steps if s.node)] for name in names_in(node)}
        chosen: dict[str, str] = {}
        taken = {"torch", "np", "got", "expected", "bound", "worst", "seen", "error", "placed", *MODULES}
        for step in steps:
            if step.name not in used or step.name in self.inlined:
                continue
            hint = re.sub(r"\W+", "_", step.hint).strip("_") or "value"
            hint = f"_{hint}" if hint[0].isdigit() or keyword.iskeyword(hint) else hint
            name, number = hint, 2
            while name in taken:
                name, number = f"{hint}_{number}", number + 1
            taken.add(name)
            chosen[step.name] = name
        return chosen

    def _folded(self, steps: list[Step]) -> list[Step]:
        """The steps that only let an operand require grad, before anything else uses it."""
        found, seen = [], set[str]()
        for step in steps:
            if step.node is None:
                continue
            code = ast.unparse(step.node) if isinstance(step.node, ast.Call) else ""
            name = code.removesuffix(".requires_grad_(True)")
            if name != code and name not in seen and name in self.leaves(steps):
                found.append(step)
            seen |= names_in(step.node)
        return found

    def leaves(self, steps: list[Step]) -> set[str]:
        """The variables of operands."""
        return {step.name for step in steps if step.leaf is not None and step.name not in self.inlined}

    def _steps(self, steps: list[Step]) -> Iterator[str]:
        context: tuple[str, ...] = ()
        for step in sorted(steps, key=lambda step: step.leaf is None):
            if step is self.failure.step or step.name in self.inlined or step in self.folded:
                continue
            wanted = (*step.modes, *_suppressing(step))
            if wanted != context and wanted:
                yield f"with {', '.join(wanted)}:"
            context = wanted
            yield textwrap.indent(self.line(step), "    " if context else "")

    def line(self, step: Step) -> str:
        if step.leaf is not None:
            leaf = step.leaf
            made = leaf.seeded if self.options.seeded else leaf.literal
            if (self.options.strided and tuple(leaf.values.stride()) != leaf.stride) or 0 in leaf.stride:
                made = f"placed({made}, {leaf.stride})"
            folded = any(step.name in names_in(other.node) for other in self.folded if other.node)
            if leaf.requires_grad or folded:
                made = (
                    f"{made[:-1]}, requires_grad=True)"
                    if made.startswith(("torch.tensor(", "torch.randn("))
                    else f"{made}.requires_grad_()"
                )
            return f"{self.names.get(step.name, '_')} = {made}"
        if isinstance(step.node, ast.FunctionDef):
            step.node.name = step.name
        code = self.code(step.node)
        if isinstance(step.node, ast.stmt):
            return code
        return f"{self.names[step.name]} = {code}" if step.name in self.names else code

    def code(self, node: Any) -> str:
        """The source of a node, with the names of the script."""
        renamed = _Renamed(self).visit(copy.deepcopy(node))
        return ast.unparse(ast.fix_missing_locations(renamed))

    def placeholder(self, kind: str, what: str) -> str:
        """The name of something of the target, of another module or of the suite; it is imported or written out."""
        if kind == "suite":
            module, _, name = what.partition(":")
            self.suite[what] = defined(resolved(module, name))
            return f"_suite_{what}"
        if kind == "import":
            module, _, name = what.partition(":")
            self.imports[f"from {module} import {name.partition('.')[0]}"] = None
            return name
        source = "reference" if self.options.right else self.target
        module, _, attribute = source.partition(":")
        if attribute:
            self.imports[f"from {module} import {attribute.partition('.')[0]}"] = None
            return f"{attribute}.{what}"
        thing = getattr(resolved(module), what, None) if not self.options.right else None
        if thing is not None and is_of_session(thing):
            imports, self.session = session_source(thing)
            self.imports |= dict.fromkeys(imports)
            return str(thing.__name__)
        if not self.options.right and (place := public_place(module, what)):
            self.imports[f"from {place[0]} import {place[1]}"] = None
            return place[1]
        self.imports[f"from {module} import {what}"] = None
        return what

    def _helpers(self) -> tuple[list[str], Callable[[str], str]]:
        """The definitions of the suite that the script uses, and a function that puts their names into a line."""
        if not self.suite:
            return [], str
        bundle = Bundle(self.suite.values(), plain_regions(), is_open=True)
        text = Text(bundle, list(self.names.values()))
        body = self.definitions = compact(text.body) if self.shorter is None else self.shorter
        for line in text.imports.splitlines():
            if line and is_used(line, body):
                self.imports[line] = None
        helper_names = {f"_suite_{what}": text.name(each) for what, each in self.suite.items()}
        pattern = re.compile("|".join(map(re.escape, sorted(helper_names, key=len, reverse=True))))
        lines = ["", *body.splitlines(), ""]
        return lines, lambda line: pattern.sub(lambda found: helper_names[found.group()], line)

    def _used_aliases(self, lines: Iterable[str]) -> Iterator[str]:
        text = "\n".join(lines)
        return (line for name, line in ALIASES.items() if re.search(rf"\b{name}\.", text))


def _suppressing(step: Step) -> tuple[str, ...]:
    """The region around a call that raised, after which the check went on."""
    if step.raised is None:
        return ()
    kind = type(step.raised)
    return (f"contextlib.suppress({kind.__name__ if kind.__module__ == 'builtins' else 'Exception'})",)


class _Renamed(ast.NodeTransformer):
    """Gives variables and placeholders their names in the script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.script.names.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.script.inlined:
            return self.visit(copy.deepcopy(self.script.inlined[node.id]))  # type: ignore[no-any-return]
        found = PLACEHOLDER.fullmatch(node.id)
        if found:
            return ast.Name(self.script.placeholder(*found.groups()), ast.Load())
        return ast.Name(self.script.names.get(node.id, node.id), ast.Load())


def names_in(node: ast.AST) -> set[str]:
    """The variables in a piece of code."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
