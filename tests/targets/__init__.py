"""Small targets for the tests of the command; each is imported from this folder by its bare module name."""
