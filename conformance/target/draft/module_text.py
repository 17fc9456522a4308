"""The text of a target module for a layer class, with a comment at each guess."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from conformance.target.draft.arguments import SOURCES, WITH_SIZES, Argument, meanings_of
from conformance.target.draft.built_layer import ALPHA, BuiltLayer, Place, R
from conformance.target.draft.measured_layer import MeasuredLayer

GUESS = "# guess: "
PARAMETERS = (
    'self, orig_linear, dim=8, alpha=32, dropout=0.0, dropout_position="{position}",',
    'lora_A_init_method="xavier", lora_dtype=None{options}',
)
WHERE = {"pre": "before the adapter", "mid": "in the adapter, between A and B", "post": "after the adapter"}
REFUSALS = {
    "pickling": "could not be pickled",
    "autocast": "did not run under autocast",
    "inplace_output": "does not let its output change in place",
}
PASSED = "orig_linear, dim, alpha, dropout, dropout_position, lora_A_init_method, lora_dtype"


@dataclass(frozen=True)
class Drafted:
    """What is known of a class.

    Attributes:
        module, name: the module and the name of the class.   distribution: the package that installs it; may be empty.
        target: the name of the module that is written.
    """

    module: str
    name: str
    distribution: str
    target: str
    arguments: tuple[Argument, ...]
    made: BuiltLayer
    measured: MeasuredLayer

    @property
    def alias(self) -> str:
        """The name under which the class is imported."""
        return "Layer" if self.name in ("LinearLoRA", "WrappedLayer") else self.name

    @property
    def library(self) -> str:
        """The name of the library: its distribution, or its outermost module."""
        return self.distribution or self.module.partition(".")[0]

    @property
    def adapter_only(self) -> bool:
        """Whether the wrapper computes the base product, because the class does not."""
        return self.measured.adapter_only or (self.made.weight is None and self.measured.factor is None)

    @property
    def keeps_base(self) -> bool:
        """Whether the wrapper keeps the linear layer, because the class's layer has no parameter that is its weight."""
        return self.adapter_only or self.made.weight is None

    @property
    def has_no_alpha(self) -> bool:
        """Whether the class takes neither alpha nor a scale, and multiplies by one."""
        factor = self.measured.factor
        return not {"alpha", "scale"} & self.meanings and factor is not None and math.isclose(factor, 1, rel_tol=1e-3)

    @property
    def meanings(self) -> set[str]:
        """The meanings of the arguments."""
        return meanings_of(self.arguments)

    @property
    def configurations(self) -> list[str]:
        """The imports of the classes of which an argument is an object."""
        kinds = [argument.kind for argument in self.arguments if argument.kind is not None]
        return [f"from {kind.__module__} import {kind.__name__}" for kind in kinds]


def as_it_is(drafted: Drafted) -> str:
    """The text for a class that has the names of `reference`."""
    alias = "" if drafted.name == "LinearLoRA" else " as LinearLoRA"
    imported = f"from {drafted.module} import {drafted.name}{alias}  # noqa: F401"
    helpers = ["from conformance.targets.wrapped_layer import version_of"] if drafted.distribution else []
    declared = ["CONFORMANCE = {", *_identity(drafted), "}"]
    return "\n".join([_title(drafted), "", *helpers, imported, "", *declared]) + "\n"


def wrapped(drafted: Drafted) -> str:
    """The text for a class with other names: a subclass of `WrappedLayer`."""
    alias = f" as {drafted.alias}" if drafted.alias != drafted.name else ""
    helpers = ["WrappedLayer", "as_module", *["version_of"] * bool(drafted.distribution)]
    body = [*_attributes(drafted), *_signature(drafted), *_wrap(drafted), *_names(drafted), *_methods(drafted)]
    text = "\n".join(f"    {line}" if line else "" for line in body)
    used = [name for name in helpers if name != "as_module" or "as_module(" in text]
    lines = [
        _title(drafted),
        "",
        f"from conformance.targets.wrapped_layer import {', '.join(used)}",
        f"from {drafted.module} import {drafted.name}{alias}",
        *drafted.configurations,
        "",
        *_declaration(drafted),
        "",
        "",
        "class LinearLoRA(WrappedLayer):",
        f'    """{drafted.name} with the names that loraspec reads; `self.wrapped` is the built {drafted.name}."""',
        "",
        text,
    ]
    return "\n".join(lines) + "\n"


def guesses(text: str) -> int:
    """The number of guesses in a text."""
    return text.count(GUESS)


def _title(drafted: Drafted) -> str:
    return (
        f'"""Target of loraspec for {drafted.module}:{drafted.name}: `loraspec run {drafted.target} --group layer`."""'
    )


def _declaration(drafted: Drafted) -> Iterator[str]:
    positions = drafted.measured.dropout
    yield "CONFORMANCE = {"
    yield from _identity(drafted)
    if "dropout" in drafted.meanings and positions:
        yield f"    {GUESS}a built layer's dropout acted {WHERE[positions[0]]}"
        yield f'    "dropout_positions": {_written(positions)},'
    elif "dropout" in drafted.meanings:
        yield f"    {GUESS}a built layer's dropout acted neither before, in nor after the adapter: clauses will fail"
        yield '    "dropout_positions": ("pre",),'
    yield '    "features": {'
    for name, reason in _lacks(drafted).items():
        yield f'        "{name}": "absent",  {GUESS}{reason}'
    if drafted.measured.merges_in_eval:
        yield f'        "eval_mode": "merged",  {GUESS}eval() changed the weight of a built layer'
    for feature, convention, reason in drafted.measured.followed:
        yield f'        "{feature}": "{convention}",  {GUESS}{reason}'
    yield f'        "state_names": "other",  {GUESS}the parameters are those of {drafted.name}, with its names'
    yield "    },"
    yield "}"


def _identity(drafted: Drafted) -> Iterator[str]:
    yield f'    "name": "{drafted.library} {drafted.name}",'
    if drafted.distribution:
        yield f'    "version": version_of("{drafted.distribution}"),'


def _written(positions: tuple[str, ...]) -> str:
    return "({})".format("".join(f'"{position}",' for position in positions))


def _lacks(drafted: Drafted) -> dict[str, str]:
    """The features that the class lacks, each with the reason for the guess."""
    found = {"initialisation": "the class initialises A in its own way"}
    if "dropout" not in drafted.meanings:
        found["dropout"] = "the class has no dropout"
    if not drafted.measured.any_adapter_dtype:
        found["adapter_dtype"] = "a built layer did not take an adapter of another dtype than x"
    if drafted.has_no_alpha:
        found["alpha"] = "the class takes no alpha; a built layer's factor was 1"
    if not drafted.measured.scales_early:
        found["early_scaling"] = "a built layer multiplied by its factor at the end"
    return found | {name: REFUSALS[name] for name in drafted.measured.refused}


def _attributes(drafted: Drafted) -> Iterator[str]:
    measured, made = drafted.measured, drafted.made
    yield f'library = "{drafted.library}"'
    if measured.dropout != ("pre",) and (measured.dropout or "dropout" not in drafted.meanings):
        yield f"dropout_positions = {_written(measured.dropout)}  # any other is refused"
    if not measured.any_adapter_dtype:
        yield f"one_dtype = True  {GUESS}a built layer did not take an adapter of another dtype than x"
    turned = {name: place.name for name in ("lora_A", "lora_B") if (place := getattr(made, name)).transposed}
    if turned:
        each = ", ".join(f'"{name}": "{place}"' for name, place in turned.items())
        others = [other for name in turned for other in getattr(made, name).others]
        too = f"; {', '.join(others)} would fit too" if others else ""
        yield f"transposed = {{{each}}}  {GUESS}by their shapes, [K, r] and [r, N]{too}"


def _signature(drafted: Drafted) -> Iterator[str]:
    rslora = "rslora" in drafted.meanings
    position = drafted.measured.dropout[0] if drafted.measured.dropout else "pre"
    yield ""
    yield "def __init__("
    first, second = PARAMETERS
    yield f"    {first.format(position=position)}"
    yield f"    {second.format(options=', *, use_rslora=False' if rslora else '')},"
    yield "):"
    yield "    super().__init__("
    yield f"        {PASSED}{', use_rslora=use_rslora' if rslora else ''}"
    yield "    )"


def _wrap(drafted: Drafted) -> Iterator[str]:
    made, meanings = drafted.made, drafted.meanings
    yield ""
    yield "def wrap(self, orig_linear, dim, alpha, dropout, **options):"
    if drafted.measured.factor is None:
        yield f"    {GUESS}all of this; a built layer did not compute x Wᵀ + b + s·(x Aᵀ) Bᵀ with any s"
    if drafted.keeps_base:
        why = "computed the adapter's term alone" if drafted.adapter_only else "had no parameter that is the weight"
        yield f"    self.base = orig_linear  {GUESS}a built layer {why}"
    yield f"    layer = {drafted.alias}("
    for argument in drafted.arguments:
        if argument.kind is None:
            yield f"        {argument.name}={argument.source},  {GUESS}{argument.note}"
            continue
        yield f"        {argument.name}={argument.kind.__name__}(  {GUESS}{argument.note}"
        yield from (f"            {part.name}={part.source},  {GUESS}{part.note}" for part in argument.parts)
        yield "        ),"
    unused = [name for name in ("alpha", "dropout") if not {name, "scale" if name == "alpha" else name} & meanings]
    yield "    )" + (f"  {GUESS}the class has no {' and no '.join(unused)}" if unused else "")
    if "base" not in meanings:
        if not set(WITH_SIZES[1:]) & meanings:
            yield "    layer = layer.to(orig_linear.weight)"
        if not drafted.keeps_base:
            yield from _assigned(made)
    yield "    return layer"


def _assigned(made: BuiltLayer) -> Iterator[str]:
    if made.weight is not None:
        yield f"    layer{made.weight.source} = orig_linear.weight  {GUESS}by its shape, [N, K]"
        if made.bias is not None:
            yield f"    layer{made.bias.source} = orig_linear.bias  {GUESS}by its shape, [N]"


def _names(drafted: Drafted) -> Iterator[str]:
    made = drafted.made
    weight = made.weight
    if drafted.keeps_base or weight is None:
        yield from _property("weight", "self.base.weight")
        yield from _property("bias", "self.base.bias")
    elif weight.source != ".weight":
        same = weight.tensor is made.base.weight
        note = "it is the given layer's" if same else "by its shape"
        yield from _property("weight", f"self.wrapped{weight.source}", note)
        yield from _property("bias", f"self.wrapped{weight.owner}.bias", note)
    for name in ("lora_A", "lora_B"):
        place: Place = getattr(made, name)
        if place.transposed or place.source in (f".{name}", f".{name}.weight"):
            continue  # WrappedLayer has these
        note = "by its shape" + (f"; {', '.join(place.others)} would fit too" if place.others else "")
        module = place.source.endswith(".weight")
        source = f"self.wrapped{place.owner}" if module else f"as_module(self.wrapped{place.source})"
        yield from _property(name, source, note)
    yield from _scale(drafted)


def _scale(drafted: Drafted) -> Iterator[str]:
    held, factor = drafted.measured.scale, drafted.measured.factor
    if held == ".scaling":
        return
    if held is not None:
        yield from _property("scale", f"float(self.wrapped{held})", "by its value in a built layer")
    elif "rslora" in drafted.meanings:
        yield from _property("scale", "None", "no attribute holds it; only the output tells it")
    elif factor is None or math.isclose(factor, ALPHA / R, rel_tol=1e-3):
        yield from _property("scale", f"self.{SOURCES['scale'].replace('dim', 'self.dim')}", "no attribute holds it")
    else:
        yield from _property("scale", f"{factor:.6g}", "a built layer's factor, whatever alpha is")


def _property(name: str, source: str, note: str = "") -> Iterator[str]:
    yield from ("", "@property", f"def {name}(self):")
    yield f"    return {source}" + (f"  {GUESS}{note}" if note else "")


def _methods(drafted: Drafted) -> Iterator[str]:
    if drafted.measured.merges and not any(getattr(drafted.made, name).transposed for name in ("lora_A", "lora_B")):
        for name in ("merge", "unmerge"):
            yield from ("", f"def {name}(self):", f"    self.wrapped.{name}()  {GUESS}by its name")
        if hasattr(drafted.made.layer, "merged"):
            yield from _property("merged", "bool(self.wrapped.merged)", "by its name")
    if drafted.adapter_only:
        yield from ("", "def forward(self, x):", "    return self.base(x) + super().forward(x)")
