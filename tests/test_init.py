"""`loraspec init`: the target of a layer with other names computes what the layer computes, or says why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conformance import cli
from conformance.errors import UsageError
from conformance.target.draft import layer_target
from tests.support.commands import TARGETS, judged

CLAUSES = ("LAY-FWD", "LAY-BWD-DA", "LAY-BWD-DB", "LAY-FRESH", "LAY-FREEZE", "LAY-COPY", "LAY-STATE")


@pytest.fixture(autouse=True)
def at_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the small targets on the import path."""
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])


def written(layer: str, folder: Path) -> tuple[str, str]:
    """The name and the text of the module that the command writes for a layer of `dialects`."""
    name = f"target_of_{layer.lower()}"
    assert cli.main(["init", "--layer", f"dialects:{layer}", "--output", str(folder / f"{name}.py")]) == 0
    return name, (folder / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("layer", "lines"),
    [
        (
            "Textbook",
            [
                "alpha=alpha / dim,  # guess: the built layer multiplies by it as it is",
                'transposed = {"lora_A": "A", "lora_B": "B"}  # guess: by their shapes, [K, r] and [r, N]',
                "self.base = orig_linear  # guess: a built layer computed the adapter's term alone",
                "return self.base(x) + super().forward(x)",
            ],
        ),
        (
            "TextbookLinear",
            [
                "linear=orig_linear,  # guess: the linear layer to adapt",
                "return self.wrapped.linear.weight  # guess: it is the given layer's",
                '"initialisation": "absent",  # guess: the class initialises A in its own way',
                '"dropout": "absent",  # guess: the class has no dropout',
                '"adapter_dtype": "absent",  # guess: a built layer did not take an adapter of another dtype than x',
                '"early_scaling": "absent",  # guess: a built layer multiplied by its factor at the end',
                '"state_names": "other",  # guess: the parameters are those of TextbookLinear, with its names',
            ],
        ),
        (
            "Stabilized",
            [
                "alpha=alpha / dim**0.5,  # guess: the built layer's factor is alpha / √r",
                "return float(self.wrapped.lora.alpha)  # guess: by its value in a built layer",
            ],
        ),
        (
            "Configured",
            [
                "from dialects import Options",
                'module_name="layer",  # guess: any name',
                "options=Options(  # guess: by its type",
                "lora_dropout=dropout,  # guess: the dropout probability",
                'use_rslora=options["use_rslora"],  # guess: whether the scale is alpha / √r',
                "return float(self.wrapped.options.scaling)  # guess: by its value in a built layer",
            ],
        ),
        (
            "DimOut",
            [
                "dim=orig_linear.in_features,  # guess: K",
                "weight=orig_linear.weight,  # guess: by its name",
                "r=dim,  # guess: the rank r",
            ],
        ),
        (
            "HidesTheBase",
            [
                "self.base = orig_linear  # guess: a built layer had no parameter that is the weight",
                "return self.base.weight",
            ],
        ),
        (
            "MergesInEval",
            ['"eval_mode": "merged",  # guess: eval() changed the weight of a built layer'],
        ),
        (
            "Joined",
            [
                "dtype=orig_linear.weight.dtype,  # guess: one of the class's further keywords",
                "layer.linear.weight = orig_linear.weight  # guess: by its shape, [N, K]",
                "# guess: a built layer's dropout acted before the adapter",
                "one_dtype = True  # guess: a built layer did not take an adapter of another dtype than x",
            ],
        ),
        (
            "Adapters",
            [
                'return self.wrapped.lora_A["default"]  # guess: by its shape',
                'return float(self.wrapped.scaling["default"])  # guess: by its value in a built layer',
                "# guess: a built layer's dropout acted after the adapter",
                'use_rslora=options["use_rslora"],  # guess: whether the scale is alpha / √r',
                "self.wrapped.unmerge()  # guess: by its name",
                '"merged_state": "merged",  # guess: merge() changed the weight in a built layer\'s state_dict',
            ],
        ),
        (
            "Lenient",
            [
                '"autocast": "input dtype",  # guess: under autocast, a built layer kept the dtype of its input',
                '"zero_alpha": "rank",  # guess: a layer built with alpha=0 had the factor of alpha=rank',
            ],
        ),
    ],
)
def test_the_written_target_passes_the_clauses_that_the_layer_passes(
    layer: str, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text = written(layer, tmp_path)
    assert [line for line in lines if f"{line}\n" not in text] == []
    said = capsys.readouterr().out
    assert f"look at its {text.count('# guess: ')} guesses, each has a comment" in said
    assert "does not compute" not in said
    monkeypatch.syspath_prepend(tmp_path)
    report = judged(name, clauses=CLAUSES, dtypes=["float32"])
    assert {clause.id: clause.message for clause in report.clauses if clause.status != "pass"} == {}
    assert len(report.clauses) == len(CLAUSES)


def test_guessed_conventions_are_those_of_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for layer, clauses in (("Lenient", ["LAY-AMP", "LAY-FWD-SCALE"]), ("Adapters", ["MRG-STATE"])):
        report = judged(written(layer, tmp_path)[0], clauses=clauses, dtypes=["float32"])
        assert {clause.id: clause.message for clause in report.clauses if clause.status != "pass"} == {}


def test_rslora_and_merging_go_to_the_layer_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = written("Adapters", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    report = judged(name, clauses=["MRG-FLAG", "MRG-FWD", "LAY-SCALING", "LAY-TRAIN", "MRG-UNMERGE"])
    assert {clause.id: clause.message for clause in report.clauses if clause.status != "pass"} == {}


def test_what_a_layer_refuses_is_written_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, text = written("Guarded", tmp_path)
    for line in (
        "# guess: a built layer's dropout acted in the adapter, between A and B",
        '"dropout_positions": ("mid",),',
        '"pickling": "absent",',
        '"autocast": "absent",',
    ):
        assert line in text
    assert '"inplace_output"' not in text
    monkeypatch.syspath_prepend(tmp_path)
    report = judged(name, clauses=["LAY-DROP-MASK", "LAY-DROP-MID", "LAY-STATE-NAMES"], dtypes=["float32"])
    assert {clause.id: clause.message for clause in report.clauses if clause.status != "pass"} == {}


def test_a_layer_with_our_names_is_taken_as_it_is() -> None:
    found = layer_target.layer_target("layered:LinearLoRA", "mine")
    assert found.text.endswith('CONFORMANCE = {\n    "name": "layered LinearLoRA",\n}\n')
    assert found.guesses == 0
    assert "from layered import LinearLoRA  # noqa: F401\n" in found.text
    assert "WrappedLayer" not in found.text


def test_a_layer_of_another_formula_is_written_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = written("Odd", tmp_path)
    assert "# guess: all of this; a built layer did not compute x Wᵀ + b + s·(x Aᵀ) Bᵀ with any s\n" in text
    assert "a built layer does not compute x Wᵀ + b + s·(x Aᵀ) Bᵀ" in capsys.readouterr().out


def test_other_matrices_that_would_fit_are_named(tmp_path: Path) -> None:
    _, text = written("Twofold", tmp_path)
    assert 'transposed = {"lora_A": "A", "lora_B": "B"}  # guess: by their shapes' in text
    assert "[r, N]; gate would fit too\n" in text


def test_a_factor_that_no_attribute_is_named_after_is_a_number() -> None:
    text = layer_target.layer_target("dialects:Unscaled", "mine").text
    assert "    )  # guess: the class has no alpha and no dropout\n" in text
    assert "return 1  # guess: a built layer's factor, whatever alpha is\n" in text


def test_an_adapter_of_another_dtype_is_refused_where_the_layer_takes_none(tmp_path: Path) -> None:
    for name, one_dtype in (("Joined", True), ("Adapters", False)):
        module: dict[str, Any] = {"__name__": "mine"}
        exec(written(name, tmp_path)[1], module)
        if one_dtype:
            with pytest.raises(NotImplementedError, match=r"lora_dtype = torch.float64: the adapter has the dtype"):
                module["LinearLoRA"](nn.Linear(6, 4), lora_dtype=torch.float64)
        else:
            layer = module["LinearLoRA"](nn.Linear(6, 4), lora_dtype=torch.float64)
            assert layer.lora_A.weight.dtype == torch.float64
            assert layer(torch.randn(2, 6)).dtype == torch.float32


def test_a_text_that_does_not_work_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_target.module_text, "wrapped", lambda _: "class LinearLoRA: pass\n")
    with pytest.raises(
        UsageError, match="cannot be given loraspec's names: a layer built from the text raised TypeError"
    ):
        layer_target.layer_target("dialects:Joined", "mine")


def test_a_transposed_matrix_gets_its_gradient_and_moves_with_the_layer(tmp_path: Path) -> None:
    _, text = written("Twofold", tmp_path)
    module: dict[str, Any] = {"__name__": "mine"}
    exec(text, module)
    layer = module["LinearLoRA"](nn.Linear(6, 4, dtype=torch.float64), 3, 12)
    assert layer.wrapped.gate.dtype == torch.float64
    A, B = layer.lora_A.weight, layer.lora_B.weight
    nn.init.normal_(B)
    x = torch.randn(5, 6, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias) + 4 * x @ A.T @ B.T)
    y.sum().backward()
    torch.testing.assert_close(A.grad, 4 * (torch.ones(5, 4, dtype=torch.float64) @ B).T @ x)
    names = {"turned.lora_A.weight", "turned.lora_B.weight", "wrapped.gate", "base.weight", "base.bias"}
    assert {name for name, _ in layer.named_parameters()} == names
    assert layer.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--layer", "dialects:Jointed"], "layer 'dialects:Jointed' is unknown: did you mean Joined?"),
        (["--layer", "dialekts:Joined"], "layer 'dialekts:Joined' does not import: ModuleNotFoundError: "),
        (["--layer", "raising:Layer"], "does not import: ValueError: no licence found"),
        (["--layer", "dialects"], "layer 'dialects' is no class of a module: expected package.module:Class"),
        (["--layer", "dialects.py:Joined"], "expected package.module:Class"),
        (["--layer", "dialects:math"], "is a module: expected a class that inherits torch.nn.Module"),
        (["--layer", "layered:Update"], "is a class that does not inherit it: expected a class that inherits"),
        (["--layer", "dialects:Unknown"], "needs the argument 'flavour', which has no known meaning"),
        (["--layer", "dialects:Raising"], "Raising(linear=Linear(5, 3), rank=2) raised RuntimeError: no licence"),
        (["--layer", "dialects:Silent"], "weight [3, 5], linear.bias [3]: expected a matrix [2, 5] or [5, 2]"),
        (["--layer", "dialects:Rankless"], "has no parameter for the rank: expected one of r, rank, dim"),
        (["--layer", "dialects:Pair"], "returns tuple for x [7, 5]: expected a tensor"),
        (["--layer", "dialects:Joined", "--output", str(TARGETS / "right.py")], "exists: it is not overwritten"),
        (["one.py", "--output", "two.py"], "name two files: expected one"),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_used_is_one_usage_error(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("loraspec: ")) == ("", 1)
    assert says in err
    assert list(tmp_path.iterdir()) == []
