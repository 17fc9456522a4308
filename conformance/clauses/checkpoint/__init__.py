"""Adapters and training runs on disk: `save_adapter`, `load_adapter`, `save_training`, `load_training`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="CKP",
    place=130,
    judged="files in PEFT's layout, refused files, resumed training",
    names="`save_adapter`, `load_adapter`, `save_training`, `load_training`",
    required=("save_adapter", "load_adapter", "apply_lora_to_linear_modules"),
    subjects=("save_adapter",),
    positional={"save_adapter": 3, "load_adapter": 2, "save_training": 3, "load_training": 2},
)
