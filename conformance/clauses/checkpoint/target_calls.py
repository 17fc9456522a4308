"""Calls of the target for the clauses of group `checkpoint`: adapt a model, save it, load it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.checkpoint.peft_files import PREFIX, tensors_in
from conformance.clauses.model.small_models import Toy, adapted, adapters
from conformance.clauses.model.target_calls import in_its_rule, make_config
from conformance.isolation.memory_folder import in_memory
from conformance.judgement.outcomes import require
from conformance.target.adapter_tensors import adapter_of, held_magnitude
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, quiet
from conformance.target.subject import Subject

ONE = ("float32",)
WIDTH = 6  # of the toy model, whose q_proj is square and whose fc1 and fc2 are not
CHOICES: dict[str, dict[str, Any]] = {
    "q_proj": {"target_modules": ["q_proj"]},
    "wildcard": {"target_modules": ["*.fc*", "head"]},
    "one block": {"target_modules": ["blocks.1.*"]},
    "exclude": {"exclude_modules": ["*.fc1"]},
    "all": {"match_all_linear": True},
}


@dataclass(frozen=True)
class FileCase(Case):
    """An adapted model that is saved or loaded.

    Fields:
        r, alpha, rslora, dora, dropout, position: options of the adapters.   chosen: the layers with an adapter.
        how: the variant, where a clause has several.   place: an index into the clause's table.
    """

    r: int = 1
    alpha: int = 32
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    position: str = "post"
    chosen: str = "q_proj"
    how: str = ""
    place: int = 0

    def options(self) -> dict[str, Any]:
        """The arguments of the config; flags that are off keep their defaults."""
        named = {"dim": self.r, "alpha": self.alpha, **CHOICES[self.chosen]}
        if self.dropout:
            named |= {"dropout": self.dropout, "dropout_position": self.position}
        flags = {"use_rslora": self.rslora, "use_dora": self.dora}
        return named | {key: True for key, flag in flags.items() if flag}


FILES = Space(
    FileCase,
    r=(2, 1, 6, 9),
    alpha=(3, 32, 1, 16),
    rslora=(False, True),
    dora=(False, True),
    dropout=(0.0, 0.25),
    position=("pre", "post"),
    chosen=tuple(CHOICES),
)
PLAIN = FILES.narrowed(rslora=(False,), dora=(False,), dropout=(0.0,))


def folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, removed at the end of its context."""
    return tempfile.TemporaryDirectory(prefix="loraspec-", dir=in_memory(), ignore_cleanup_errors=True)


def toy(subject: Subject, case: Case) -> nn.Module:
    """A model without adapters, whose weights depend on the case alone."""
    torch.manual_seed(case.seed)
    return Toy(WIDTH).to(subject.device, dtype=getattr(torch, case.dtype)).train()


def adapt(subject: Subject, model: nn.Module, case: FileCase, **changed: Any) -> Any:
    """Put adapters into a model by `apply_lora_to_linear_modules`, and return the config."""
    options = case.options() | changed
    if case.dropout and case.position not in subject.dropout_positions:
        options["dropout_position"] = subject.dropout_positions[0]
    if subject.follows("exclusions", "combined") and "exclude_modules" in options:
        options = {"target_modules": ["*"]} | options  # exclusions only reduce other choices there
    config = make_config(subject, **in_its_rule(subject, model, options))
    with calling_quietly("apply_lora_to_linear_modules(model, config)"):
        subject.target.apply_lora_to_linear_modules(model, config)
    return config


def trained(subject: Subject, case: FileCase, **changed: Any) -> tuple[nn.Module, Any]:
    """A model whose adapters have nonzero values, as after training, and its config."""
    model = toy(subject, case)
    config = adapt(subject, model, case, **changed)
    fill(model, case.seed)
    return model, config


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Draw all values of the adapters; magnitudes stay near the norms of the rows."""
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in sorted(adapters(model).items()):
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
        parameter.copy_(parameter * (1 + drawn / 8) if "lora_magnitude" in name else drawn / 2)


def tie(model: Any) -> None:
    """Let the head of a toy model share its weight with the embeddings; the model does not run after that."""
    head = getattr(model.head, "base_layer", model.head)  # inside PEFT's wrapper of an adapted head
    model.embed.weight = head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def save(subject: Subject, model: nn.Module, config: Any, path: Any) -> None:
    """Call the target's `save_adapter(model, config, path)`."""
    with calling_quietly("save_adapter(model, config, path)"):
        subject.target.save_adapter(model, config, str(path))


def load(subject: Subject, model: nn.Module, path: Any) -> Any:
    """The config that the target's `load_adapter(model, path)` returns."""
    with calling_quietly("load_adapter(model, path)"):
        return subject.target.load_adapter(model, str(path))


def output(model: nn.Module, seed: int = 0) -> torch.Tensor:
    """The output of a toy model for some tokens in eval mode; its training flags are restored."""
    tokens = torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(seed))
    was = {module: module.training for module in model.modules()}
    with torch.no_grad(), calling("the model's forward"):
        y = model.eval()(tokens.to(next(model.parameters()).device))
    for module, flag in was.items():
        module.training = flag
    return y  # type: ignore[no-any-return]


def expected_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' values, by the names that PEFT gives them in a file."""
    found = {}
    for layer in adapted(model):
        module = model.get_submodule(layer)
        for name in ("lora_A", "lora_B"):
            found[f"{PREFIX}{layer}.{name}.weight"] = adapter_of(module, name).detach().clone()
        magnitude = held_magnitude(module)
        if magnitude is not None:
            found[f"{PREFIX}{layer}.lora_magnitude_vector"] = magnitude.detach().clone()
    return found


def culprit(path: Path, model: nn.Module) -> str:
    """The function at fault where what was loaded is not what was saved: `save_adapter` if the file is wrong."""
    found, expected = tensors_in(path), expected_tensors(model)
    whole = set(found) == set(expected) and all(equal_bits(found[name], tensor) for name, tensor in expected.items())
    return "load_adapter" if whole else "save_adapter"


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a failed load must not change: values, flags, gradients, and the identity of Parameters."""
    return {
        **{f"the parameter {name}": id(p) for name, p in model.named_parameters()},
        **{f"the value of {name}": value.detach().clone() for name, value in model.state_dict().items()},
        **{f"requires_grad of {name}": p.requires_grad for name, p in model.named_parameters()},
        **{
            f"the gradient of {name}": None if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
        },
        **{f"the class of {name or 'the model'}": type(m) for name, m in model.named_modules()},
        **{f"the training flag of {name or 'the model'}": m.training for name, m in model.named_modules()},
        **{f"the scale of {name}": m.scale for name, m in model.named_modules() if hasattr(m, "scale")},
    }


def require_same(before: dict[str, Any], model: nn.Module, what: str, but: Callable[[str], bool] | None = None) -> None:
    """Require that a model has not changed since its `snapshot`.

    Args:
        but: whether the entry of `snapshot` with this name may change.
    """
    now = snapshot(model)
    for name in {**before, **now}:
        if but is not None and but(name):
            continue
        old, new = before.get(name, "not there"), now.get(name, "not there")
        equal = equal_bits(old, new) if isinstance(old, torch.Tensor) else old is new or old == new
        require(equal, f"{what} changed {name}")


def equal_bits(a: Any, b: Any) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, two = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, two)


def fails(subject: Subject, model: nn.Module, path: Path, what: str, *mentions: str) -> None:
    """Require that loading raises an Exception that mentions these words and leaves the model unchanged."""
    before = snapshot(model)
    error = raised(lambda: subject.target.load_adapter(model, str(path)))
    require(error is not None, f"load_adapter of {what} raised nothing: expected an error")
    require(
        isinstance(error, Exception), f"load_adapter of {what} raised {type(error).__name__}: expected an Exception"
    )
    require_same(before, model, f"load_adapter of {what}, which it refused,")
    for word in mentions:
        require(
            word in str(error),
            f"load_adapter of {what} raised {type(error).__name__}: {error}: it does not name {word}",
        )


def raised(call: Callable[[], Any]) -> BaseException | None:
    """The exception that a call raises, or None."""
    try:
        with quiet():
            call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (the exception is the result)
        return error
    return None
