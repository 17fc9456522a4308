"""Right but different layers on packed bases, those of a declared convention among them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import reference
from tests.baselines import packed_variants
from tests.baselines.quantised import target_of
from tests.baselines.requantised import RequantisingPacked
from tests.known_bad.quantised.storage import RepacksForInference


class Repacking(target_of(RepacksForInference)):  # type: ignore[misc]
    """A target whose layers repack themselves, which it declares; it reads either layout."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {"packed_storage": "repacked"}}

    def packed_fields(self, module: Any) -> Any:
        if getattr(module, "turned", False):
            module = copy.deepcopy(module)
            module.weight.data.copy_(module.weight.data << 4 | module.weight.data >> 4)
        return reference.packed_fields(module)


VARIANTS: dict[str, Any] = packed_variants.VARIANTS
DECLARED: dict[str, Any] = {"requantises": RequantisingPacked(), "repacks": Repacking()}
