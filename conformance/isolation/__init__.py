"""What keeps a target's code and process apart from the judge."""
