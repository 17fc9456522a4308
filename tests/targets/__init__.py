"""Small targets for the tests of the command: each is imported by its bare name from this folder."""
