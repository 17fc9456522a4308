"""Formats of packed weights, one file for each family: its storage, and the numbers that it stands for."""
