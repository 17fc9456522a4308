"""Mutation operators; each replaces one node of a syntax tree by nodes with one small defect."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any

Operator = Callable[[Any], Iterator[ast.expr | ast.stmt]]
OPERATORS: dict[str, Operator] = {}

ARITHMETIC: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
ARITHMETIC |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr}
ARITHMETIC |= {ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift}
SYMMETRIC = ("max", "min", "maximum", "minimum", "promote_types", "equal", "gcd", "lcm", "broadcast_shapes", "hypot")
# The first replacement differs only at the boundary, the second is the opposite.
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
# A call of these methods is replaced by its receiver.
UNWRAPPED = {"detach", "contiguous", "clone", "to", "float", "double", "t", "transpose", "abs", "sum", "type_as"}
UNWRAPPED |= {"reshape", "view", "flatten", "sqrt", "square", "div", "mul", "add", "neg", "view_as", "lower", "strip"}
TRANSPOSES = {"T", "mT", "mH"}
DTYPES = {"float64": "float32", "float32": "float16", "bfloat16": "float16", "float16": "bfloat16"}
AXES = ("M", "N", "K", "R")
PAIRED_NAMES = {"lora_A": "lora_B", "lora_B": "lora_A", "in_features": "out_features", "out_features": "in_features"}


def operator(name: str) -> Callable[[Operator], Operator]:
    """Register a mutation operator under the name that its mutants carry."""

    def register(function: Operator) -> Operator:
        OPERATORS[name] = function
        return function

    return register


def changed(node: Any, **fields: Any) -> Any:
    """Return a copy of a node with some fields replaced."""
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(copy.copy(node))), **fields}), node)


@operator("arithmetic")
def arithmetic(node: Any) -> Iterator[Any]:
    """`a + b` becomes `a - b`."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield changed(node, op=ARITHMETIC[type(node.op)]())


@operator("dropped-term")
def dropped_term(node: Any) -> Iterator[Any]:
    """`a + b` and `a * b` become `a`, then `b`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitAnd):
        yield node.left
        if isinstance(node.op, ast.Add | ast.Mult | ast.BitAnd):
            yield node.right


@operator("swapped-operands")
def swapped_operands(node: Any) -> Iterator[Any]:
    """`a - b` becomes `b - a`; `f(a, b)` becomes `f(b, a)`, but for functions that are the same both ways."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.MatMult | ast.Mod | ast.Pow):
        yield changed(node, left=node.right, right=node.left)
    ordered = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] not in SYMMETRIC
    if ordered and len(node.args) >= 2 and not _is_text(node.args[0]):
        first, second, *rest = node.args
        if ast.dump(first) != ast.dump(second) and not isinstance(second, ast.Starred):
            yield changed(node, args=[second, first, *rest])


@operator("comparison")
def comparison(node: Any) -> Iterator[Any]:
    """`a < b` becomes `a <= b`, then `a >= b`."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARISONS.get(type(node.ops[0]), ()):
            yield changed(node, ops=[other()])


@operator("boolean")
def boolean(node: Any) -> Iterator[Any]:
    """`a and b` becomes `a or b`, then each part alone; `not a` becomes `a`."""
    if isinstance(node, ast.BoolOp):
        yield changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for left_out in range(len(node.values)):
            rest = [v for i, v in enumerate(node.values) if i != left_out]
            yield rest[0] if len(rest) == 1 else changed(node, values=rest)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand


@operator("condition")
def condition(node: Any) -> Iterator[Any]:
    """`a if c else b` becomes `a`, then `b`."""
    if isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse


@operator("constant")
def constant(node: Any) -> Iterator[Any]:
    """A number becomes a nearby number, `True` becomes `False`, a string that is a name gets a trailing `_`."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
        if value > 0:
            yield ast.Constant(value - 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)
    elif isinstance(value, str) and value.isidentifier():
        yield ast.Constant(value + "_")


@operator("unwrapped-call")
def unwrapped_call(node: Any) -> Iterator[Any]:
    """`x.detach()` becomes `x`; `w.T` becomes `w`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in UNWRAPPED:
        yield node.func.value
    if isinstance(node, ast.Attribute) and node.attr in TRANSPOSES and isinstance(node.ctx, ast.Load):
        yield node.value


@operator("detached")
def detached(node: Any) -> Iterator[Any]:
    """A tensor operand of a product is detached."""
    products = {"linear", "matmul", "mm", "addmm", "dropout", "embedding"}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in products:
        for position, argument in enumerate(node.args):
            if isinstance(argument, ast.Name | ast.Attribute):
                cut = ast.Call(ast.Attribute(argument, "detach", ast.Load()), [], [])
                yield changed(node, args=[*node.args[:position], cut, *node.args[position + 1 :]])


@operator("dropped-keyword")
def dropped_keyword(node: Any) -> Iterator[Any]:
    """`f(a, dim=1)` becomes `f(a)`."""
    if isinstance(node, ast.Call):
        for left_out in range(len(node.keywords)):
            yield changed(node, keywords=[k for i, k in enumerate(node.keywords) if i != left_out])


@operator("dtype")
def dtype(node: Any) -> Iterator[Any]:
    """`torch.float32` becomes `torch.float16`, which makes an accumulator too narrow."""
    if isinstance(node, ast.Attribute) and node.attr in DTYPES and isinstance(node.value, ast.Name):
        yield changed(node, attr=DTYPES[node.attr])


@operator("name")
def name(node: Any) -> Iterator[Any]:
    """`lora_A` becomes `lora_B`; in a kernel `M` becomes `N` and `stride_xm` becomes `stride_xk`."""
    if isinstance(node, ast.Attribute) and node.attr in PAIRED_NAMES and isinstance(node.ctx, ast.Load):
        yield changed(node, attr=PAIRED_NAMES[node.attr])
    if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
        return
    if node.id in PAIRED_NAMES:
        yield changed(node, id=PAIRED_NAMES[node.id])
    if node.id in AXES:
        yield changed(node, id=AXES[(AXES.index(node.id) + 1) % len(AXES)])


@operator("statement")
def statement(node: Any) -> Iterator[Any]:
    """A statement with an effect is removed, a condition is negated, or None is returned instead of a value."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign | ast.Raise):
        yield ast.Pass()
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield changed(node, value=ast.Constant(None))
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
