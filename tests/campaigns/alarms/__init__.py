"""The suite on implementations that are right: alarms, undecided cases, and how close the worst error comes."""
