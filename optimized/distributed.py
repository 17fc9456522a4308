"""A layer split over ranks: the styles are the reference's, and on DTensors its formula computes (`why_not_fused`)."""

from reference.distributed import colwise_parallel_lora, rowwise_parallel_lora

__all__ = ["colwise_parallel_lora", "rowwise_parallel_lora"]
