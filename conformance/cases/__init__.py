"""Cases, which are small frozen records, and the operands made from them."""
