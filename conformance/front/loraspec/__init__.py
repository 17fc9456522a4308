"""Judge LoRA layers from a notebook or from a project's own tests.

`check` judges a layer, `parametrize` makes a test for each clause, and `assert_lora_close` judges results that are
already there. Importing this package imports no other module of the distribution, nor torch.
"""

from loraspec.check_report import CheckReport, check
from loraspec.clause_tests import ClauseTest, parametrize
from loraspec.closeness import assert_lora_close

__all__ = ["CheckReport", "ClauseTest", "assert_lora_close", "check", "parametrize"]
