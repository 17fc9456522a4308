"""A target that breaks a clause's check; an error of the suite must not count against a target."""

import right

from conformance.specification.clause import REGISTRY

lora_linear = right.lora_linear


def failing_check(subject, case):  # noqa: ARG001
    return 1 / 0


object.__setattr__(REGISTRY["LIN-FWD-ZERO"], "check", failing_check)
