"""The client and the server of a split model: remote modules, the protocol between both, and models on disk."""
