"""The right implementations by name, each with the clauses that it must pass: variants, both libraries, and peers."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any

import conformance
from conformance.errors import TargetError
from conformance.specification.clause import Clause
from tests.baselines import distributed, fhe, fhe_backend, hybrid, model, model_conventions, remote, training
from tests.baselines.fused_model import FusedMlp, FusedProjections
from tests.campaigns import variants
from tests.campaigns.variants import batches, blocks, experts, files, lives, norms, packed
from tests.campaigns.variants.choices import CHOICES
from tests.campaigns.variants.conventions import CONVENTIONS

FINDINGS = Path(conformance.__file__).parent / "findings"
LIBRARIES = ("reference", "optimized")
PEERS = (
    *("eager", "expert_loop", "torch_gradnorm", "accelerate_gradnorm", "loralib", "torchtune", "seal", "concrete"),
    *("peft", "peft_model", "peft_checkpoint", "peft_experts", "peft_batched", "nemo_automodel", "nemo_experts"),
)
FORMULAS = ("LIN-FWD", "LIN-BWD-DX", "LIN-BWD-DA", "LIN-BWD-DB", "LAY-FWD")  # of what compiles for a second a case
# What a variant does not do: it was written for a few clauses, or for one choice.
PLAIN_BLOCKS = ("FUS-AMP*", "FUS-ACTIVATION-NAME")  # computes in the dtype of x, and checks no name
NO_DORA = tuple(f"packed {name}" for name in (*packed.VARIANTS, *packed.DECLARED))
NOT_DONE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("blocks Eager", "blocks Merged", "blocks UpFirst"), PLAIN_BLOCKS),
    "blocks KeepsTheActivation": ("FUS-MEM-LATER",),  # keeps that of the last call alone
    # by these rules, the patterns that it falls back to choose nothing
    **dict.fromkeys(("model BySuffix", "model ByComponent", "model ByRegex"), ("MOD-NOTHING-GIVEN",)),
    **dict.fromkeys(NO_DORA, ("QNT-DORA*",)),
    # multiplies an adapter's rows together, so bits depend on their number; unpacks Ŵ whole; adds an update of zeros
    "reference": ("BAT-REL-NEIGHBOURS-EXACT", "QNT-MEM-TILE", "EXP-MOD-FRESH-BITS"),
}


@dataclass(frozen=True)
class RightImplementation:
    """A right implementation, and the clauses that it must pass.

    Attributes:
        make: makes the object or imports the module.
        groups: it is judged by the clauses of these groups that it claims; empty for all groups.
        clauses: it is judged by these alone, if there are any.
        but: patterns of clauses that it does not meet on purpose, or that a page of findings describes.
    """

    make: Callable[[], Any]
    groups: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def must_pass(self, clause: Clause) -> bool:
        """Whether a clause, if it is claimed, must pass."""
        if any(fnmatchcase(clause.id, pattern) for pattern in self.but):
            return False
        return clause.id in self.clauses if self.clauses else not self.groups or clause.group in self.groups


def findings(peer: str) -> tuple[str, ...]:
    """The clauses that a peer fails by the pages of its library, `peft` say, in `conformance/findings/`."""
    library = peer.partition("_")[0]
    found: set[str] = set()
    for page in FINDINGS.glob("*.md"):
        lines = dict(re.findall(r"^(Targets|Clauses): (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
        if library in {re.split(r"[_:]", target)[0] for target in lines.get("Targets", "").split(", ")}:
            found |= set(lines.get("Clauses", "").split(", "))
    return tuple(sorted(found))


def _ours(things: dict[str, Any], *groups: str, family: str = "") -> dict[str, RightImplementation]:
    found = {f"{family} {name}".strip(): thing for name, thing in things.items()}
    return {
        name: RightImplementation(lambda thing=thing: thing, groups, but=NOT_DONE.get(name, ()))
        for name, thing in found.items()
    }


def _by_clauses(things: dict[str, tuple[Any, tuple[str, ...]]]) -> dict[str, RightImplementation]:
    return {name: RightImplementation(lambda t=thing: t, clauses=clauses) for name, (thing, clauses) in things.items()}


MODELS = {
    kind.__name__: kind()
    for kind in (
        model.RightModel,
        model_conventions.ByWildcards,
        model_conventions.ByLooseWildcards,
        model_conventions.BySuffix,
        model_conventions.ByComponent,
        model_conventions.ByRegex,
        model_conventions.LikePeft,
        model_conventions.AdaptsEveryHead,
        model_conventions.SaysNothing,
        model_conventions.HasNoExclusions,
        FusedMlp,
        FusedProjections,
    )
}


@cache
def catalogue() -> dict[str, RightImplementation]:
    """Every right implementation of our own by name."""
    return {
        **_ours(variants.VARIANTS, "linear", "layer", "merge", "dora"),
        "compiled": RightImplementation(lambda: variants.VARIANTS["compiled"], clauses=FORMULAS),
        **_by_clauses(CONVENTIONS),
        **_by_clauses(CHOICES),
        **_ours(blocks.VARIANTS, "fused", family="blocks"),
        **_ours(batches.VARIANTS, "batched", family="batches"),
        **_ours(experts.VARIANTS, "experts", family="experts"),
        **_ours({**packed.VARIANTS, **packed.DECLARED}, "quantised", family="packed"),
        **_ours(files.VARIANTS, "checkpoint", family="files"),
        **_ours(norms.VARIANTS, "gradnorm", family="norms"),
        **_ours(MODELS, "model", family="model"),
        **_ours({"steps": training.Right(), "trainer": training.RightTrainer()}, "training", family="training"),
        **_ours({"modules": hybrid.Right()}, "hybrid", family="split"),
        **_ours({"integers": fhe.Right(), "backend": fhe_backend.Right()}, "fhe", family="encrypted"),
        **_ours({"server": remote.Right()}, "remote", family="remote"),
        **_ours({"layers": distributed.Right()}, "distributed", family="ranks"),
        **_ours(lives.VARIANTS, "life", family="lives"),
        **{
            name: RightImplementation(partial(importlib.import_module, name), but=NOT_DONE.get(name, ()))
            for name in LIBRARIES
        },
    }


@cache
def peers() -> dict[str, RightImplementation]:
    """The peers that are installed, by the names of their targets."""
    found = {}
    for name in PEERS:
        module = f"conformance.targets.{name}"
        try:
            importlib.import_module(module)
        except (ImportError, TargetError):
            continue  # the library is not installed
        found[module] = RightImplementation(partial(importlib.import_module, module), but=findings(name))
    return found
