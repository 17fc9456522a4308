"""The files of adapters and training runs: PEFT's layout, safetensors, and atomic replacement."""
