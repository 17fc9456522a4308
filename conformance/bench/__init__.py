"""`loraspec bench`: what layers cost beside the frozen `nn.Linear` they adapt, in one process and interleaved."""
