"""The clauses: one folder a group, one file a topic; every id stands here once, as a literal."""
