"""Golden adapters: small PEFT folders with the exact change of every parameter, and the judgement of who loads them."""
