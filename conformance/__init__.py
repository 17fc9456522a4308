"""Conformance suite for LoRA implementations: clauses, cases, an oracle with an error budget, and a verdict.

A run has four steps: a `Case` becomes operands, the oracle and the target both compute from them, the judgement
compares the two results, and the report collects the judgements. No module imports torch until a clause runs.
"""
