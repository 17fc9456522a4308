"""The tensors of experts in a file: PEFT's layout, packed for all experts of a module, and its older reversed one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..experts_module import projections_of, weight_of

VERSION = "0.21.2"  # of PEFT, whose layout is written
FIRST_OF_LAYOUT = (0, 19, 1)  # the first version of PEFT that writes this layout for every module
INNER = "base_layer."
_OF_EXPERT = re.compile(r"(.*)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.(lora_[AB])\.weight")
_PACKED = re.compile(r"(.*?)\.((?:base_layer\.)*)(lora_[AB])\.weight")
Pair = tuple[Tensor, Tensor]


@dataclass
class ExpertTensors:
    """The adapters of one module of experts in a file.

    Attributes:
        packed: A and B by depth: how often ``base_layer.`` precedes them.
        of_experts: A and B by expert and the name of its projection.
    """

    packed: dict[int, dict[str, Tensor]]
    of_experts: dict[tuple[int, str], dict[str, Tensor]]


def split_tensors(
    tensors: Mapping[str, Tensor], experts: Mapping[str, Any], prefix: str
) -> tuple[dict[str, ExpertTensors], dict[str, Tensor]]:
    """The tensors of these modules of experts, by the module's name, and the other tensors of a file."""
    found: dict[str, ExpertTensors] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        own, packed = _OF_EXPERT.fullmatch(name), _PACKED.fullmatch(name)
        if own and own[1] in experts:
            entry = found.setdefault(own[1], ExpertTensors({}, {}))
            entry.of_experts.setdefault((int(own[2]), own[3]), {})[own[4]] = tensor
        elif packed and packed[1] in experts:
            entry = found.setdefault(packed[1], ExpertTensors({}, {}))
            entry.packed.setdefault(len(packed[2]) // len(INNER), {})[packed[3]] = tensor
        else:
            others[key] = tensor
    return found, others


def packed_tensors(name: str, module: Any) -> dict[str, Tensor]:
    """A and B of adapted experts as PEFT packs them: A expert-slowest [r·E, K], B expert-fastest [N, r·E].

    The projection that is registered last is the outermost; each other one is one ``base_layer.`` further inside.
    """
    adapted = [projection for projection in projections_of(module) if projection in module.lora_A]
    found = {}
    for depth, projection in enumerate(reversed(in_order(module, adapted))):
        A, B = module.lora_A[projection], module.lora_B[projection]
        where = f"{name}.{INNER * depth}"
        found[f"{where}lora_A.weight"] = A.reshape(-1, A.shape[2])
        found[f"{where}lora_B.weight"] = B.permute(1, 2, 0).reshape(B.shape[1], -1)
    return found


def in_order(module: Any, projections: Any) -> list[str]:
    """Projections in the order in which the module registers them."""
    return [name for name in module._parameters if name in projections]


def unpacked(name: str, module: Any, adapted: list[str], found: ExpertTensors, is_reversed: bool) -> dict[str, Pair]:
    """A [E, r, K] and B [E, N, r] of each adapted projection, in the order of the module's storage."""
    pairs = {}
    for depth, projection in enumerate(reversed(in_order(module, adapted))):
        A, B = both(f"{name}.{INNER * depth}", found.packed[depth])
        experts = len(getattr(module, projection))
        rank = A.shape[0] // experts
        A, B = A.reshape(experts, rank, -1), B.reshape(B.shape[0], rank, experts).permute(2, 0, 1)
        pairs[projection] = (B.mT, A.mT) if is_reversed else (A, B)
    return pairs


def both(where: str, parts: Mapping[str, Tensor]) -> Pair:
    """A and B of one adapter.

    Raises:
        ValueError: naming the one that is missing.
    """
    for part in ("lora_A", "lora_B"):
        if part not in parts:
            raise ValueError(f"no tensor {where}{part}.weight: expected lora_A and lora_B of each adapter")
    return parts["lora_A"], parts["lora_B"]


def reversed_in(name: str, module: Any, adapted: list[str], found: ExpertTensors) -> dict[str, bool | None]:
    """By projection whether its A reads the outputs, as in older files; None where both would fit.

    Raises:
        ValueError: if neither fits, naming the shapes.
    """
    verdicts: dict[str, bool | None] = {}
    for depth, projection in enumerate(reversed(in_order(module, adapted))):
        A, B = both(f"{name}.{INNER * depth}", found.packed[depth])
        experts, n, k = weight_of(module, projection).shape
        fits = A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] and A.shape[0] % experts == 0
        right, old = fits and (A.shape[1], B.shape[0]) == (k, n), fits and (A.shape[1], B.shape[0]) == (n, k)
        if not right and not old:
            raise ValueError(
                f"{name}.{projection}: lora_A is {list(A.shape)} and lora_B is {list(B.shape)}: expected [r·{experts}, "
                f"{k}] and [{n}, r·{experts}]"
            )
        verdicts[f"{name}.{projection}"] = None if right and old else old
    return verdicts


def is_reversed_file(verdicts: Mapping[str, bool | None], version: object) -> bool:
    """Whether all adapters of experts in a file are reversed: any unambiguous shape decides, else PEFT's version.

    Raises:
        ValueError: if two shapes contradict each other, or if no shape decides and neither does the version.
    """
    decided = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    if len(set(decided.values())) > 1:
        new, old = (next(n for n, v in decided.items() if v is verdict) for verdict in (False, True))
        raise ValueError(f"lora_A of {new} reads inputs, that of {old} reads outputs: expected one layout in a file")
    if decided:
        return next(iter(decided.values()))
    numbers = tuple(int(n) for n in re.findall(r"\d+", str(version or ""))[:3])
    if verdicts and numbers < FIRST_OF_LAYOUT:
        raise ValueError(
            f"lora_A of {', '.join(verdicts)} may read inputs or outputs, which are equally many, and peft_version is "
            f"{version!r}: expected {'.'.join(map(str, FIRST_OF_LAYOUT))} or later, which reads inputs"
        )
    return False
