"""`optimized`, with a Triton layer that takes every optional route."""

import optimized
from optimized.dispatch.routes import ONE_KERNEL, ONE_READING

CONFORMANCE = {"name": "optimized, all routes"}
LinearLoRA = optimized.LinearLoRA


class TritonLinearLoRA(optimized.TritonLinearLoRA):
    routes = (ONE_READING, ONE_KERNEL)
