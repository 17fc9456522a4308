"""The autograd nodes: each computes a layer, a block of layers or an update as one node of the graph."""
