"""The versions of the specification that this suite judges by, the newest last."""

SPECS = ("1.0",)
