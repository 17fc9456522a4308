"""Conformance suite for LoRA implementations: clauses, cases, an oracle with an error budget, and a verdict.

A run reads one way: a `Case` becomes operands, the oracle and the target both compute from them, the judgement
compares the two, the report collects the judgements. Nothing here imports torch until a clause runs.
"""
