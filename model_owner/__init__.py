"""The model owner (vendor): hosts compiled models, keeps the weights, serves inference."""
