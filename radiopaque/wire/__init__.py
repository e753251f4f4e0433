"""Messages between the parties: generated stubs in ``v1``, strict encoding and decoding beside."""
