"""ONNX to a validated, calibrated, public plan. No cryptography, no network."""
