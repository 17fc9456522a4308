"""`loraspec bench`: time and memory of layers relative to the frozen `nn.Linear`, interleaved in one process."""
