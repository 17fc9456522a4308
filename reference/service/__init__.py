"""The client and the server of a split model: remote modules, their protocol, and models on disk."""
