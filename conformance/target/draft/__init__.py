"""Drafts of targets: what the signature and one small built layer of a class tell, as the text of a module."""
