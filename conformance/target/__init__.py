"""A target: its claimed groups, its subjects, and the page that tells how to write a target."""
