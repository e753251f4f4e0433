"""Second implementations, against which radiopaque is held.

:mod:`tests.reference.walk` is the protocol once more: slow, in plain Python integers and lists,
written from the mathematics. It and all that it imports share no code with radiopaque, not even
numpy or the ChaCha20 of a library. What both agree on, bit for bit, is in ``tests/vectors``.
Nothing here runs in constant time: for tests only.
"""
