"""The judgement: what a target gave against what was expected, within its budget."""
