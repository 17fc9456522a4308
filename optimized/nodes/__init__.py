"""The autograd nodes: each is one node of the graph for a layer, a block of layers or an update."""
