"""The benchmark harness: what radiopaque and its peers cost, side by side, from one command.

It measures the product from outside, as processes, and imports the core; the core does not import
it, and it shares nothing with the training companion.
"""
