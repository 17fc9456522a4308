"""Known-bad twins of patterns: a layer gets another rank or alpha than rank_pattern and alpha_pattern say."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import reference
from conformance.clauses.checkpoint.peft_files import CONFIG
from tests.baselines.checkpoint import Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks

PATTERNS = {"says": "the output is off by", "dtypes": ("float64",)}


class Honours(Right):
    """A target that honours patterns, as the reference does."""

    def save_adapter(self, model, config, path):
        reference.save_adapter(model, config, path)
        self.saved(Path(path))

    def load_adapter(self, model, path):
        config = self.loaded(model, Path(path))
        self.finish(self.layers(model), config)
        return config

    def saved(self, path):
        pass

    def loaded(self, model, path):
        return reference.load_adapter(model, path)

    def finish(self, layers, config):
        pass


@breaks("CKP-PATTERNS", source="huggingface/diffusers #14409", **PATTERNS)
class ScalesAllByTheFirstLayer(Honours):
    def finish(self, layers, config):
        first = next(iter(layers.values()))
        for layer in layers.values():
            layer.scale = first.scale


@breaks("CKP-PATTERNS", **PATTERNS)
class DividesByTheFilesRank(Honours):
    def finish(self, layers, config):
        for layer in layers.values():
            layer.scale = layer.alpha / (config.dim**0.5 if config.use_rslora else config.dim)


@breaks("CKP-PATTERNS", **PATTERNS)
class IgnoresAlphasOfLayers(Honours):
    def finish(self, layers, config):
        for layer in layers.values():
            layer.scale = config.alpha / (layer.dim**0.5 if config.use_rslora else layer.dim)


class ChoosesOtherwise(Honours):
    """A target with another rule for patterns."""

    def chosen(self, patterns: dict[str, Any], name: str) -> Any:
        raise NotImplementedError

    def finish(self, layers, config):
        for name, layer in layers.items():
            key = self.chosen(config.alpha_pattern, name)
            alpha = config.alpha if key is None else config.alpha_pattern[key]
            layer.scale = alpha / (layer.dim**0.5 if config.use_rslora else layer.dim)


@breaks("CKP-PATTERNS", **PATTERNS)
class SearchesPatternsAnywhere(ChoosesOtherwise):
    def chosen(self, patterns, name):
        return next((pattern for pattern in patterns if re.search(pattern, name)), None)


@breaks("CKP-PATTERNS", **PATTERNS)
class TakesTheLastPattern(ChoosesOtherwise):
    def chosen(self, patterns, name):
        return next((p for p in reversed(list(patterns)) if re.match(rf"(.*\.)?({p})$", name)), None)


@breaks("CKP-PATTERNS", **PATTERNS)
class ComparesLastComponents(ChoosesOtherwise):
    def chosen(self, patterns, name):
        last = name.rpartition(".")[2]
        return last if last in patterns else None


@breaks("CKP-PATTERNS", says="raised ValueError", dtypes=("float64",), source="huggingface/peft #3737")
class LosesRanksOnSaving(Honours):
    def saved(self, path):
        values = json.loads((path / CONFIG).read_text())
        (path / CONFIG).write_text(json.dumps(values | {"rank_pattern": {}, "alpha_pattern": {}}))


@breaks("CKP-PATTERNS", says="raised ValueError", dtypes=("float64",), source="MakazhanAlpamys/Soup #803")
class ReturnsAConfigWithoutPatterns(Honours):
    def loaded(self, model, path):
        return dataclasses.replace(super().loaded(model, path), rank_pattern={}, alpha_pattern={})
