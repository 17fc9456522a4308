"""A target: what it claims, its subjects, and the page that tells how to write one."""
