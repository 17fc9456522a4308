"""Formats of packed weights in tiles: the codes of a part of Ŵ become numbers by tables and vector operations."""
