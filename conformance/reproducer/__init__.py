"""A failing check written out as a script of its own."""
