"""The versions of the specification that this suite implements, newest last."""

SPECS = ("1.0",)
