"""What an operator sees of a party: metrics, metering, traces, and the doctor's checks.

Nothing here takes part in the protocol. Labels and fields are names of models, methods and callers,
sizes, counts and times; never anything of an image, a weight or a key.
"""
