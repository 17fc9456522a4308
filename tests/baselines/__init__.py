"""Right implementations, one a group, that known-bad twins inherit from and override one thing of."""
