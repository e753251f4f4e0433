"""The inner loops that carry the cost: exact integer arithmetic modulo 2^32 and 2^64, as Numba
functions that release the GIL. Nothing here knows a party, a key or a message; shapes, dtypes
and sizes are checked at this boundary, since the compiled loops do not check them."""
