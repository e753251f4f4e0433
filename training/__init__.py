"""Training of the shipped models.

A companion of the product: what it hands over is an ONNX file and a JSON manifest, nothing else.
It imports neither the core nor a party, and they do not import it.
"""
