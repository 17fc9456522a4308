"""Each failing clause of the committed reports has a page of findings, and each page's program prints its output."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import conformance
from conformance.adapters.judgement import FAILING
from conformance.report.matrix import markdown, page, saved_reports
from conformance.report.matrix.assemble import assemble
from conformance.specification.clause import MUST, SHOULD, load_all

PLACE = Path(conformance.__file__).parent
REPORTS = sorted((PLACE / "reports").glob("*/*.json"))
PAGES = sorted(path for path in (PLACE / "findings").glob("*.md") if path.stem != "README")
OF_LOADERS = [page for page in PAGES if "\nAdapters: " in page.read_text()]
OF_CLAUSES = [page for page in PAGES if page not in OF_LOADERS]
# of which pip has another name
LIBRARIES = {"NeMo Automodel": "nemo-automodel", "Concrete ML": "concrete-ml", "gguf-py": "gguf"}
LIBRARIES |= {"AdapterHub": "adapters", "LyCORIS": "lycoris-lora"}
LOADED = json.loads((PLACE / "reports" / "adapters.json").read_text())["loaders"]
# fixtures that provide a part of a library
AS = {"concrete-ml": "as_concrete_ml", "sglang": "as_sglang", "speechbrain": "as_speechbrain"}
LEFT = ("unsloth", "axolotl", "litgpt", "adapters")  # whose targets leave the part that they use imported
LARGEST = 250_000  # characters in a report; that of three hundred clauses has 210,000


def listed(page: Path, what: str) -> set[str]:
    """The names on the page's line `Targets: …`, `Clauses: …` or `Adapters: …`."""
    line = re.search(rf"^{what}: (.+)$", page.read_text(), re.MULTILINE)
    assert line, f"{page.name} has no line {what}"
    return set(line[1].split(", "))


def block(page: Path, language: str) -> str:
    """The page's only code block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def versions(name: str) -> set[str]:
    """The versions in that of a report: of one library, or of one on another, as in 0.21.2+hqq.0.2.8."""
    return set(re.split(r"\+[a-z]+\.|\+cpu$", name))


def libraries(page: Path) -> dict[str, str]:
    """The libraries in a page's title, as pip names them, with their versions."""
    title = page.read_text().splitlines()[0].removeprefix("# ").partition(": ")[0]
    found = re.findall(r"(?:, | on |\(|^)([A-Za-z -]+?) (\d[\w.]*)", title)
    return {LIBRARIES.get(name, name.lower()): version for name, version in found}


def failing(report: dict[str, Any]) -> set[str]:
    """The MUST clauses that did not pass in a report."""
    return {c["id"] for c in failed(report) if c["level"] == MUST}


def failed(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The clauses of any level that did not pass in a report."""
    return [c for c in report["clauses"] if c["status"] in ("fail", "crashed", "inconclusive")]


def test_the_committed_matrix_is_made_from_the_committed_reports() -> None:
    columns = [saved_reports.read(path, PLACE) for path in saved_reports.reports(PLACE / "reports")]
    made = markdown.document(assemble(columns))
    assert (PLACE / "reports" / "MATRIX.md").read_text() == made, "loraspec matrix conformance/reports makes it anew"
    assert len(page.document(columns).encode()) < 1_000_000


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_failing_clause_of_a_report_has_a_page(path: Path) -> None:
    report = json.loads(path.read_text())
    target = report["target"].removeprefix("conformance.targets.")
    pages = [page for page in OF_CLAUSES if target in listed(page, "Targets")]
    explained = set().union(*(listed(page, "Clauses") for page in pages))
    assert failing(report) <= explained, "no page in conformance/findings"
    assert report["target_version"] == path.stem
    assert all(versions(path.stem) & set(libraries(page).values()) for page in pages)


@pytest.mark.parametrize("loader", LOADED, ids=lambda loader: loader["target"])
def test_each_failing_golden_adapter_has_a_page(loader: dict[str, Any]) -> None:
    target = loader["target"].removeprefix("conformance.targets.")
    pages = [page for page in OF_LOADERS if target in listed(page, "Targets")]
    explained = [name for page in pages for name in listed(page, "Adapters")]
    failed = [name for name, cell in loader["cells"].items() if cell["status"] in FAILING]
    assert sorted(explained) == sorted(failed), "pages in conformance/findings and conformance/reports/adapters.json"
    assert all(loader["version"] in page.read_text().splitlines()[0] for page in pages)
    assert loader["problem"] == ""


@pytest.mark.parametrize("page", OF_CLAUSES, ids=lambda page: page.stem)
def test_each_clause_on_a_page_fails_in_a_report(page: Path) -> None:
    reports = [json.loads(path.read_text()) for path in REPORTS]
    targets = {f"conformance.targets.{name}" for name in listed(page, "Targets")}
    found = [report for report in reports if report["target"] in targets]
    assert len(found) == len(targets), f"a target of {page.name} has no report"
    judged = {c["id"] for report in found for c in report["clauses"]}  # a report may be older than a SHOULD clause
    newer = {name for name in listed(page, "Clauses") - judged if load_all()[name].level == SHOULD}
    assert listed(page, "Clauses") - newer <= {c["id"] for report in found for c in failed(report)} & set(load_all())


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_report_is_valid_and_small_and_has_no_local_paths(path: Path) -> None:
    text = path.read_text()
    jsonschema.validate(json.loads(text), json.loads((PLACE / "report" / "report.schema.json").read_text()))
    assert len(text) < LARGEST
    assert not re.search(r"/(?:home|root|tmp|work|Users)/|site-packages", text)
    assert json.loads(text)["errors"] == []


@pytest.fixture
def as_concrete_ml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide `concrete.ml.torch.lora` from the target's module, without the rest of Concrete ML."""
    module = importlib.import_module("conformance.targets.concrete_ml")
    for name in ("concrete", "concrete.ml", "concrete.ml.torch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "concrete.ml.torch.lora", module.lora)


@pytest.fixture
def as_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the modules of SGLang that its loader needs, without the rest of SGLang."""
    target = importlib.import_module("conformance.targets.sglang_adapters")
    for name in ("sglang", "sglang.srt", "sglang.srt.lora"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, module in target.NEEDED.items():
        monkeypatch.setitem(sys.modules, f"sglang.srt.lora.{name}", module)


@pytest.fixture
def as_speechbrain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide `speechbrain.nnet.adapters` from the target, without the rest of SpeechBrain."""
    target = importlib.import_module("conformance.targets.speechbrain")
    for name, module in target.found.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_program_on_a_page_prints_the_pages_output(page: Path, request: pytest.FixtureRequest) -> None:
    named = libraries(page)
    assert named, f"the title of {page.name} names no library and version"
    for library, version in named.items():
        if version not in {found.version.partition("+")[0] for found in importlib.metadata.distributions(name=library)}:
            pytest.skip(f"{library} is not installed in the version that {page.name} is about")
    if "triton" in page.stem and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("interpreted kernels: TRITON_INTERPRET=1 is not set")
    if "gguf" in named and "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_CPP names no checkout of llama.cpp")
    for library in AS.keys() & named.keys():
        request.getfixturevalue(AS[library])
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        for library in set(LEFT) & named.keys():
            importlib.import_module(f"conformance.targets.{library}")
        exec(compile(block(page, "python"), page.name, "exec"), {"__name__": "__main__"})
    assert printed.getvalue() == block(page, "text")
