"""The judgement: a target's results compared with the expected values, within their budget."""
