"""Known-bad twins of refusals: what cannot be packed is packed, and what cannot be split or wrapped is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks


class RightRefusals(RightPacked):
    """A target with the calls that a packed base refuses."""

    LoraTraining: Any = reference.LoraTraining
    HybridFHEModel: Any = reference.HybridFHEModel
    colwise_parallel_lora: Any = staticmethod(reference.colwise_parallel_lora)
    rowwise_parallel_lora: Any = staticmethod(reference.rowwise_parallel_lora)

    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        return reference.packed_linear(linear, format, **options)


@breaks("QNT-REFUSE-FORMAT", says="nf5') returned", dtypes=("float32",), source="a table looked up with a default")
class PacksUnknownFormatsAsNf4(RightRefusals):
    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        return super().packed_linear(linear, "nf4" if format == "nf5" else format, **options)


@breaks("QNT-REFUSE-FORMAT", says="_option=3) returned", dtypes=("float32",), source="**kwargs that nobody reads")
class IgnoresUnknownOptions(RightRefusals):
    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        known = {key: value for key, value in options.items() if not key.endswith("_option")}
        return super().packed_linear(linear, format, **known)


@breaks("QNT-REFUSE-FORMAT", says="raised RuntimeError", dtypes=("float32",), source="torch's view reports the size")
class FailsInAViewOfBlocks(RightRefusals):
    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        try:
            return super().packed_linear(linear, format, **options)
        except ValueError as error:
            if "divide" in str(error) or "expected a positive" in str(error):
                raise RuntimeError(f"shape {list(linear.weight.shape)} is invalid for this view") from error
            raise


@breaks("QNT-REFUSE-FORMAT", says="changed the layer it was given", source="a layer emptied before it is packed")
class EmptiesTheLayerFirst(RightRefusals):
    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        try:
            return super().packed_linear(linear, format, **options)
        except ValueError:
            linear.weight.data = torch.zeros_like(linear.weight)
            raise


@breaks("QNT-REFUSE-NUMBERS", says="returned PackedLinear: expected ValueError", source="bitsandbytes 0.50.2")
class PacksNaN(RightRefusals):
    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        clean = nn.Linear(linear.in_features, linear.out_features, bias=False, dtype=linear.weight.dtype)
        clean.weight.data = linear.weight.detach().nan_to_num()
        clean.bias = linear.bias
        return super().packed_linear(clean, format, **options)


@breaks("QNT-REFUSE-NUMBERS", says="does not say that the weight", source="a check of the scales")
class SaysThatTheScaleIsWrong(RightRefusals):
    def packed_linear(self, linear: Any, format: str, **options: Any) -> Any:  # type: ignore[override]  # noqa: A002
        try:
            return super().packed_linear(linear, format, **options)
        except ValueError as error:
            raise ValueError("a scale is wrong" if "NaN" in str(error) else str(error)) from error


class Unchecked(RightRefusals):
    """A target whose PackedWeight repairs the fields that `repaired` says."""

    def __init__(self) -> None:
        self.PackedWeight: Any = self.made

    def made(self, form: str, shape: Any, fields: dict[str, Any], options: Any = None) -> Any:
        fields = dict(fields)
        while True:
            try:
                return reference.PackedWeight(form, shape, fields, options or {})
            except ValueError as error:
                if not self.repaired(str(error), fields):
                    raise

    def repaired(self, said: str, fields: dict[str, Any]) -> bool:
        raise NotImplementedError


@breaks("QNT-REFUSE-FIELDS", says="with a dimension more returned", source="a check of the number of elements")
class ChecksOnlyTheNumberOfElements(Unchecked):
    def repaired(self, said: str, fields: dict[str, Any]) -> bool:
        for name, field in fields.items():
            if said.startswith(f"field {name} ") and field.shape[:1] == (1,):
                fields[name] = field[0]
                return True
        return False


@breaks("QNT-REFUSE-FIELDS", says="a field more returned", source="fields read by name, the rest left")
class IgnoresSurplusFields(Unchecked):
    def repaired(self, said: str, fields: dict[str, Any]) -> bool:
        return fields.pop("offsets", None) is not None


@breaks("QNT-REFUSE-FIELDS", says="the message does not name", source="an assertion on all fields")
class DoesNotSayWhichField(RightRefusals):
    @staticmethod
    def PackedWeight(*arguments: Any) -> Any:
        try:
            return reference.PackedWeight(*arguments)
        except ValueError as error:
            raise ValueError("the fields do not fit the format") from error


class Unreplaced(reference.LoraTraining):
    @staticmethod
    def replace_layers_with_custom(model: nn.Module, skip_first: bool = True) -> None:
        pass


@breaks("QNT-REFUSE-CUSTOM", says="of a model with a packed base returned", source="a list of classes")
class LeavesPackedBasesOutOfTheSplit(RightRefusals):
    LoraTraining = Unreplaced


class Emptied(reference.HybridFHEModel):
    def __init__(self, model: Any, module_names: Any, *arguments: Any, **options: Any) -> None:
        try:
            super().__init__(model, module_names, *arguments, **options)
        except ValueError:
            model["proj"] = nn.Identity()
            raise


@breaks("QNT-REFUSE-CUSTOM", says="the refused calls made", source="a module taken out before it is looked at")
class TakesTheModuleOutFirst(RightRefusals):
    HybridFHEModel = Emptied


@breaks("QNT-REFUSE-SHARDS", says="colwise_parallel_lora of a layer on a packed base returned", dtypes=("float32",),
        source="distribute_tensor of bytes along rows")  # fmt: skip
class SplitsBytes(RightRefusals):
    @staticmethod
    def colwise_parallel_lora(**layouts: Any) -> Any:
        from torch.distributed.tensor.parallel import ColwiseParallel

        class Bytes(ColwiseParallel):
            def _partition_linear_fn(self, name: str, module: Any, device_mesh: Any) -> None:
                pass

        return Bytes(**layouts)


@breaks("QNT-REFUSE-SHARDS", says="the message does not name packed", dtypes=("float32",), source="an error of torch")
class SaysThatTheShapeIsWrong(RightRefusals):
    @staticmethod
    def rowwise_parallel_lora(**layouts: Any) -> Any:
        from torch.distributed.tensor.parallel import RowwiseParallel

        class Sizes(RowwiseParallel):
            def _partition_linear_fn(self, name: str, module: Any, device_mesh: Any) -> None:
                if not name:
                    kind, weight = type(module).__name__, module.weight
                    raise ValueError(f"{kind}: cannot split {weight.dtype} {list(weight.shape)} along dimension 1")

        return Sizes(**layouts)
