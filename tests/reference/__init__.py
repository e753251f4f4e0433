"""A second implementation of the protocol: slow, in plain Python integers and lists.

It is written from the mathematics of the protocol and shares no code with radiopaque, not even
numpy or the ChaCha20 of a library. What both implementations agree on, bit for bit, is in
``tests/vectors``. Nothing here runs in constant time: for tests only.
"""
