"""The CrypTen engine: models that the gates do not take, under CrypTen, over the same parties.

Everything here but ``worker`` is free of torch and CrypTen; ``worker`` runs in a process of its own
for each inference, because CrypTen's state is global. What this engine promises, and what it does
not: docs/crypten-engine.md.
"""
