"""Group `config`: `PeftConfig` with `to_dict` and `from_dict`.

Options that exclude each other (targets with exclusions, match_all_linear with either) are no matter of this
group: a config may refuse them when it is made or leave that to whoever applies it. MOD-EXCLUSIVE judges it.
"""

from __future__ import annotations

from conformance import config

globals().update(config.tests())
