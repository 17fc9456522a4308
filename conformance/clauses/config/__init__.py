"""The configuration of an adapter: `PeftConfig` with `to_dict` and `from_dict`.

This group does not judge options that exclude each other (targets with exclusions, `match_all_linear` with either): a
config may refuse them when it is made, or leave that to the function that applies it. MOD-EXCLUSIVE judges that.
"""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="CFG",
    place=70,
    judged="defaults, validation, round trips",
    names="`PeftConfig`",
    required=("PeftConfig", "PeftConfig.to_dict", "PeftConfig.from_dict"),
    subjects=("PeftConfig",),
)
