"""Cases: small frozen records, and the operands that are made from them."""
