"""The expected output and gradients of a DoRA layer, each with its budget; and a layer built from a case."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics import budget
from conformance.numerics.formats import Array, rounded
from conformance.specification.features import meant
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of, fill_magnitude, is_magnitude
from conformance.target.subject import TRAINABLE, Instance, Subject

# the norm is a square root: no exact lane. Rank and width are moderate, so that no row comes near zero.
DORA = SMALL.narrowed(values=("normal",), k=(17, 33, 70, 130), scale=(2.0, 0.5, 1.0), training=(True, False))
NAMES = (*TRAINABLE, MAGNITUDE)


class DoraOracle:
    """Expected output and gradients of `y = m′ ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + b`, with `m′ = m/‖V‖`, `V = W + s·BA`.

    By the conventions that the target declares, the norm is a constant of the backward pass, or differentiated: then V
    gets the gradient `-(dm ⊙ m/‖V‖²) V` in addition, and with it A and B. And m′ multiplies the bias, or not.

    The row factor m′ multiplies the result of a LoRA layer, so its budget is that layer's times |m′|, the factor's
    own error, and one more store.

    Args:
        earlier: the oracle of an earlier call of the layer, whose norm a stale cache would keep.
        changed: the only operand of the norm that has changed since, if there is one.
        differentiated, scaled: whether the norm is differentiated, and whether m′ multiplies the bias.
    """

    def __init__(
        self,
        operands: Operands,
        magnitude: Array,
        earlier: DoraOracle | None = None,
        changed: str = "",
        *,
        differentiated: bool = False,
        scaled: bool = False,
    ) -> None:
        values, self.operands, self.how = operands.values, operands, operands.rounding
        self.x, self.g, self.magnitude = operands.rows("x"), operands.rows("g"), magnitude.reshape(-1)
        self.weight, self.bias = values["weight"], values.get("bias")
        self.down, self.up, self.scale = values["lora_A"], values["lora_B"], operands.scale
        self.adapted = self.weight + self.scale * self.up @ self.down
        self.norm = np.linalg.norm(self.adapted, axis=1)
        self.factor, self.earlier, self.changed = self.magnitude / self.norm, earlier, changed
        self.differentiated, self.scaled = differentiated, scaled
        # a norm over K squares, its operand W + s·BA stored once in the base's dtype, and three stores of the factor
        unit = max(self.how.unit, self.how.adapter_unit)
        joined = abs(self.scale) * np.linalg.norm(np.abs(self.up) @ np.abs(self.down), axis=1) / self.norm
        self.relative = unit * (4 + joined) + self.how.accumulation(self.weight.shape[1])

    def _expected(
        self, name: str, value: Array, allowed: Array, mistakes: dict[str, Array] | None = None, **terms: Array
    ) -> Expected:
        shape = (*self.operands.case.leading, value.shape[-1]) if name in ("y", "dX") else value.shape
        dtype = self.operands.dtype if name in ("y", "dX") else self.operands.adapter_dtype
        terms = {term: part.reshape(shape) for term, part in terms.items()}
        wrong = {words: mistake.reshape(shape) for words, mistake in (mistakes or {}).items()}
        return Expected(name, value.reshape(shape), allowed.reshape(shape), dtype, terms, mistakes=wrong)

    @property
    def _wrong_factors(self) -> dict[str, Array]:
        """By the words of a mistake in the norm the factor m′ that it gives."""
        norms = {
            "the scale were missing from the norm": self.weight + self.up @ self.down,
            "the update were missing from the norm": self.weight,
        }
        if self.earlier is not None:
            stale = f"a stale cache, whose key leaves out {self.changed}" if self.changed else "a stale cache"
            norms[f"the norm were that of the earlier call ({stale})"] = self.earlier.adapted
        with np.errstate(divide="ignore"):
            return {words: self.magnitude / np.linalg.norm(rows, axis=1) for words, rows in norms.items()}

    def _differentiated(self, of: str) -> Array:
        """The gradient of `lora_A` or `lora_B` if the norm were differentiated too."""
        direction = self.adapted / self.norm[:, None]
        whole = self.g.T @ self.x  # the gradient of m′ ⊙ (W + s·BA), before m′
        along = self._gradient_of_magnitude().value[:, None] * direction
        change = self.factor[:, None] * (whole - along) * self.scale
        return np.asarray(self.up.T @ change if of == "lora_A" else change @ self.down.T)

    @property
    def product(self) -> Array:
        """What m′ multiplies."""
        return np.asarray(self.x @ self.adapted.T + self._inside)

    @property
    def _inside(self) -> Array:
        """The bias where m′ multiplies it, else zeros."""
        return np.zeros(len(self.norm)) if self.bias is None or not self.scaled else self.bias

    def y(self, *, update: bool = True) -> Expected:
        """The output, with the adapter and the bias as its terms; `m′ ⊙ x Wᵀ + b` without the update."""
        base = self.x @ self.weight.T + self._inside
        scaled = (self.product if update else base) * self.factor
        given = np.zeros_like(scaled) if self.bias is None else np.broadcast_to(self.bias, scaled.shape)
        bias = given - self._inside
        allowed = self._rows(self.x, self.weight, self.down, self.up) * np.abs(self.factor)
        # the plan base + (m′-1)·base + m′·update stores each of them
        parts = np.abs(base) * (1 + np.abs(self.factor - 1)) + np.abs(scaled) * 2 + np.abs(bias)
        allowed = allowed + np.abs(scaled) * self.relative + self.how.unit * (parts + np.abs(scaled + bias))
        terms = {"adapter": self.scale * (self.x @ self.down.T @ self.up.T) * self.factor} if update else {}
        mistakes = {words: self.product * factor + bias for words, factor in self._wrong_factors.items()}
        if self.bias is not None:
            terms["bias"] = bias + self._inside * self.factor
            mistakes |= self._wrong_biases(scaled, given)
        return self._expected("y", scaled + bias, allowed, mistakes if update else None, **terms)

    def _wrong_biases(self, scaled: Array, bias: Array) -> dict[str, Array]:
        """By the words of a mistake in the bias the y that it gives."""
        if self.scaled:
            unscaled = scaled + bias * (1 - self.factor)
            return {self._other_bias: unscaled}
        return {
            self._other_bias: scaled + bias * self.factor,
            "the bias were scaled by the stored magnitude": scaled + bias * self.magnitude,
        }

    def bias_gradient(self) -> Expected:
        """The gradient of a trainable bias: the sum over tokens of g, or of `m′ ⊙ g` where m′ multiplies the bias."""
        g, how = self.g * (self.factor if self.scaled else 1.0), self.how
        allowed = how.stored(np.ones((1, len(g))), g)[0] * how.unit + np.abs(g).sum(0) * how.accumulation(len(g))
        allowed = allowed + 2 * how.unit * np.abs(g.sum(0)) + 4 * how.step
        if self.scaled:
            allowed = allowed + np.abs(g).sum(0) * self.relative + how.unit * np.abs(g).sum(0)
        other = (self.g * (1.0 if self.scaled else self.factor)).sum(0)
        return Expected("db", g.sum(0), allowed, self.operands.dtype, mistakes={self._other_bias: other})

    @property
    def _other_bias(self) -> str:
        """The mistake of the other convention of the bias, in words."""
        if self.scaled:
            return f"the bias were not scaled by the magnitude{meant('dora_bias', 'outside')}"
        return f"the bias were scaled by the magnitude{meant('dora_bias', 'scaled')}"

    def gradient(self, of: str) -> Expected:
        """The gradient of `x`, `lora_A`, `lora_B` or `lora_magnitude`."""
        g = self.g * self.factor
        wrong = {words: self.g * factor for words, factor in self._wrong_factors.items()}
        if of == "x":
            allowed = self._rows(g, self.weight.T, self.up.T, self.down.T)
            spread = (np.abs(g) * self.relative) @ np.abs(self.adapted)
            value = g @ self.adapted
            mistakes = {words: one @ self.adapted for words, one in wrong.items()}
            adapter = self.scale * (g @ self.up @ self.down)
            return self._expected("dX", value, allowed + spread, mistakes, adapter=adapter)
        if of == "lora_A":
            allowed = budget.weight_chain(g, self.up, self.x, self.scale, self.how)
            spread = abs(self.scale) * ((np.abs(g) * self.relative) @ np.abs(self.up)).T @ np.abs(self.x)
            mistakes = {words: self.scale * (one @ self.up).T @ self.x for words, one in wrong.items()}
            return self._with_norm(of, self.scale * (g @ self.up).T @ self.x, allowed + spread, mistakes)
        if of == "lora_B":
            allowed = budget.weight_chain(self.x, self.down.T, g, self.scale, self.how).T
            spread = abs(self.scale) * (np.abs(g) * self.relative).T @ np.abs(self.x @ self.down.T)
            mistakes = {words: self.scale * one.T @ (self.x @ self.down.T) for words, one in wrong.items()}
            return self._with_norm(of, self.scale * g.T @ (self.x @ self.down.T), allowed + spread, mistakes)
        return self._gradient_of_magnitude()

    def _gradient_of_magnitude(self) -> Expected:
        value = (self.g * self.product).sum(0) / self.norm
        rows = self._rows(self.x, self.weight, self.down, self.up)
        stored = self.how.stored(np.ones((1, len(self.x))), self.g * self.product)[0]
        allowed = (np.abs(self.g) * rows).sum(0) / self.norm + self.how.unit * 2 * stored / self.norm
        absolute = np.abs(self.g * self.product).sum(0) / self.norm
        allowed = allowed + absolute * self.how.accumulation(len(self.x)) + np.abs(value) * self.relative
        return self._expected("dm", value, allowed + 4 * self.how.step)

    def _with_norm(self, of: str, value: Array, allowed: Array, mistakes: dict[str, Array]) -> Expected:
        """The gradient of A or B with the part that comes through the norm, where the norm is differentiated.

        The coefficient of V has the error of dm, that of the factor m/‖V‖², and two stores. The gradient of V itself,
        `gᵀ x` and the part of the norm, is stored once in the base's dtype before B or A multiplies it.
        """
        name = {"lora_A": "dA", "lora_B": "dB"}[of]
        if not self.differentiated:
            mistakes[f"the norm were differentiated{meant('dora_norm', 'differentiated')}"] = self._differentiated(of)
            return self._expected(name, value, allowed, mistakes)
        mistakes[f"the norm were constant{meant('dora_norm', 'constant')}"] = value
        g = self.g * self.factor
        dm, ratio = self._gradient_of_magnitude(), self.factor / self.norm
        assert dm.budget is not None
        of_weight = -(dm.value * ratio)[:, None] * self.adapted
        off = (dm.budget * np.abs(ratio))[:, None] * np.abs(self.adapted)
        off = off + np.abs(of_weight) * (3 * self.relative + 2 * self.how.unit)[:, None]
        off = off + self.how.unit * (np.abs(of_weight) + np.abs(g).T @ np.abs(self.x))
        part = self.scale * self._through(name, of_weight)
        spread = abs(self.scale) * self._through(name, off, absolute=True)
        absolute = abs(self.scale) * self._through(name, np.abs(of_weight), absolute=True)
        inner = len(self.up) if name == "dA" else self.down.shape[1]
        spread = spread + absolute * (self.how.accumulation(inner) + 2 * self.how.unit)
        spread = spread + max(self.how.unit, self.how.adapter_unit) * (np.abs(value) + np.abs(part))
        return self._expected(name, value + part, allowed + spread, mistakes, norm=part)

    def _through(self, name: str, of_weight: Array, *, absolute: bool = False) -> Array:
        """The gradient of A or B from that of V, `Bᵀ dV` or `dV Aᵀ`; of the absolute values of B and A if asked."""
        up, down = (np.abs(self.up), np.abs(self.down)) if absolute else (self.up, self.down)
        return np.asarray(up.T @ of_weight if name == "dA" else of_weight @ down.T)

    def judged(self, instance: Instance, y: torch.Tensor, names: tuple[str, ...] = NAMES) -> float | None:
        """Judge an output and the gradients of the named operands."""
        gradients = (judge(instance.gradient(name), self.gradient(name)) for name in names)
        return worst(judge(y, self.y()), *gradients)

    def judged_step(self, instance: Instance, names: tuple[str, ...] = NAMES) -> float | None:
        """Judge one forward and backward pass in which exactly the named operands require grad."""
        instance.require_grad(names)
        y = instance.forward()
        instance.backward(y)
        return self.judged(instance, y, names)

    def _rows(self, rows: Array, base: Array, down: Array, up: Array) -> Array:
        bias = self._inside if self.scaled and rows is self.x else None
        return budget.row_chain(rows, base, bias, down, up, self.scale, self.how)


def oracle_of(
    subject: Subject, operands: Operands, magnitude: Array, earlier: DoraOracle | None = None, changed: str = ""
) -> DoraOracle:
    """The oracle of the conventions that the target declares."""
    differentiated, scaled = subject.follows("dora_norm", "differentiated"), subject.follows("dora_bias", "scaled")
    return DoraOracle(operands, magnitude, earlier, changed, differentiated=differentiated, scaled=scaled)


def built(subject: Subject, case: LinearCase, **options: Any) -> tuple[Instance, DoraOracle]:
    """A DoRA layer with the case's operands and a magnitude other than the norm, and its oracle.

    Args:
        options: further keyword arguments of the layer.
    """
    operands = subject.operands(case)
    instance = subject.build(operands, use_dora=True, **options)
    parameter = adapter_of(instance.module, MAGNITUDE)
    shape = list(parameter.shape)
    require(is_magnitude(parameter, case.n), f"lora_magnitude has shape {shape}: expected [{case.n}] or [{case.n}, 1]")
    random = np.random.default_rng([case.seed, case.n])
    wanted = np.linalg.norm(operands.values["weight"], axis=1) * random.uniform(0.5, 2.0, case.n)
    magnitude = rounded(wanted, parameter.dtype)
    fill_magnitude(parameter, torch.from_numpy(magnitude))
    instance.tensors[MAGNITUDE] = parameter
    return instance, oracle_of(subject, operands, magnitude)


def ran(subject: Subject, case: LinearCase) -> tuple[Instance, DoraOracle]:
    """The layer and oracle of `built`, after a forward and a backward pass."""
    instance, oracle = built(subject, case)
    instance.require_grad(NAMES)
    instance.backward(instance.forward())
    return instance, oracle
