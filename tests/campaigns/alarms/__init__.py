"""Runs of the suite on right implementations: false alarms, undecided cases, and the largest error ÷ budget."""
