"""PyTorch's private names stand in two files, and results do not need them."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from conformance.isolation import torch_internals as of_the_suite
from reference import torch_internals
from tests.support.commands import python

ROOT = Path(__file__).parent.parent
FILES = ("reference/torch_internals.py", "conformance/isolation/torch_internals.py")
DOCUMENTED = {"torch.utils._python_dispatch.TorchDispatchMode", "torch.utils._pytree"}
NAMES = (
    "_C._are_functorch_transforms_active",
    "_C._is_any_autocast_enabled",
    "_C._len_torch_dispatch_stack",
    "_C._functorch.is_functorch_wrapped_tensor",
    "_C._FunctionBase",
    "_int_mm",
    "_foreach_norm",
    "_foreach_mul_",
    "ops.aten._unsafe_view",
    "autograd.forward_ad._current_level",
)


class Without:
    """An object of torch without the names that are taken away."""

    def __init__(self, whole: Any, names: tuple[str, ...]) -> None:
        self._whole, self._names = whole, names

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            raise AttributeError(name)
        below = tuple(rest for first, _, rest in (n.partition(".") for n in self._names) if first == name and rest)
        whole = getattr(self._whole, name)
        return Without(whole, below) if below else whole


def taken_away(*names: str) -> ModuleType:
    """`reference.torch_internals` as it is imported where torch lacks these names."""
    spec = importlib.util.spec_from_file_location("reference.torch_internals", ROOT / FILES[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    whole = sys.modules["torch"]
    sys.modules["torch"] = Without(whole, names)  # type: ignore[assignment]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["torch"] = whole
    return module


def private_uses(path: Path) -> Iterator[str]:
    """The private names below `torch` that a file mentions."""
    text = path.read_text(encoding="utf-8")
    if not re.search(r"\._[a-zA-Z]|import _", text):
        return
    tree = ast.parse(text)
    known = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    mentioned = {name for name in known.values() if name != "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            mentioned.add(f"{known.get(first, '')}.{rest}")
        if isinstance(node, ast.Import):
            mentioned |= {alias.name for alias in node.names}
    for name in mentioned:
        parts = name.split(".")
        private = any(part.startswith("_") and not part.startswith("__") for part in parts)
        if parts[0] == "torch" and private and not any(name.startswith(one) for one in DOCUMENTED):
            yield name


def test_private_names_of_torch_stand_in_one_file_each() -> None:
    files = [path for folder in ("reference", "optimized", "conformance") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): sorted(private_uses(path)) for path in files}
    assert {
        path: names for path, names in found.items() if names and path not in FILES and "findings" not in path
    } == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_private_name_exists_here_and_can_be_missed(name: str) -> None:
    assert torch_internals.found(name) is not None, f"torch {torch.__version__} has no {name}: only its fall-back runs"
    changed = {key for key, value in vars(taken_away(name)).items() if value is None or value is False}
    assert changed - {key for key, value in vars(torch_internals).items() if value is None or value is False}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")  # torch's own rules for tangents
@pytest.mark.parametrize("names", [(), NAMES], ids=["private", "public"])
def test_each_function_answers_alike_with_and_without_its_name(names: tuple[str, ...]) -> None:
    module, x = taken_away(*names), torch.arange(6.0).view(2, 3)
    assert not module.is_transformed(x, None)
    with forward_ad.dual_level():
        assert module.is_transformed(forward_ad.make_dual(x, x))
    inside: list[bool] = []
    torch.func.grad(lambda t: [inside.extend((module.is_wrapped(t), module.is_transformed(t))), t.sum()][1])(x)
    assert inside == [True, True]
    assert not module.is_wrapped(x)
    assert not module.is_autocast("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert module.is_autocast("cpu")
    left, right = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((24, 300), (300, 32)))
    torch.testing.assert_close(module.int8_product(left, right), left.int() @ right.int(), rtol=0, atol=0)
    tensors = [x.clone(), torch.full((2,), 1e30)]
    assert torch.stack(list(module.norms(tensors, torch.float64))).tolist() == pytest.approx([55**0.5, 2**0.5 * 1e30])
    module.scale_(tensors, 0.5)
    torch.testing.assert_close(tensors[0], x / 2)
    with torch.no_grad():
        again = module.reshaped(x, (3, 2))
    assert (again.tolist(), again._is_view()) == ([[0, 1], [2, 3], [4, 5]], False)
    assert module.may_be_dispatched() is bool(names)


PUBLIC = """
import sys
import tests.test_torch_internals as names
sys.modules["reference.torch_internals"] = names.taken_away(*names.NAMES)
for name in [name for name in sys.modules if name.partition(".")[0] in ("reference", "optimized")]:
    if name != "reference.torch_internals":
        del sys.modules[name]
from optimized.nodes.plain import PlainLoRALinear, plain_apply
assert plain_apply == PlainLoRALinear.apply
import optimized, reference, torch
x, W, A, B = (torch.randn(shape) for shape in ((4, 5, 3), (2, 3), (1, 3), (2, 1)))
for transformed in (lambda f: torch.func.vmap(f)(x), lambda f: torch.func.jvp(f, (x,), (x,))):
    ours, right = (transformed(lambda x: m.lora_linear(x, W, None, A, B, 2.0)) for m in (optimized, reference))
    torch.testing.assert_close(ours, right)
from loraspec.console import main
sys.exit(main())
"""


def test_optimized_conforms_without_private_names(tmp_path: Path) -> None:
    clauses = "LIN-FWD,LIN-BWD-DX,LAY-AMP,LAY-CKPT,LAY-BWD-DB,GRN-NORM,FHE-EXECUTE,FUS-MLP"
    options = (
        "--clause",
        clauses,
        "--dtype",
        "float32",
        "-n",
        "0",
        "--profile",
        "quick",
        "--report-dir",
        str(tmp_path),
    )
    ended = python("-c", PUBLIC, "run", "optimized", *options, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_suite_counts_modes_and_compiles_without_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        """A mode that changes nothing."""

    with Mode():
        assert of_the_suite.modes() == 1
        monkeypatch.setattr(of_the_suite, "found", lambda _: None)
        assert of_the_suite.modes() == 0
    with of_the_suite.compilation_limits(3):
        pass
