"""The ``radiopaque`` command: thin, one file per sub-command, each loaded only when it is used."""
