"""The dtypes that clauses are judged in, by name; a new dtype is added here, and to each oracle that must know it."""

# The dtype in which adapters are commonly held beside a base layer of each dtype, where the two differ.
ADAPTER_DTYPES = {"float64": "float32", "float32": "bfloat16", "bfloat16": "float32", "float16": "float32"}
FLOAT_DTYPES = tuple(ADAPTER_DTYPES)
