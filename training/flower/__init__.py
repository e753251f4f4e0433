"""Federated training across machines: the messages of secure rounds, moved by Flower.

`coordinate` runs Flower's SuperLink, `join` is a SuperNode; both speak Flower's Fleet API over TLS
1.3 with node authentication, and carry Flower messages whose content is bytes of ours
(docs/training-flower.md). Nothing that arrives is ever executed.
"""
