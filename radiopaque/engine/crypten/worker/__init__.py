"""What runs in the worker process: the only part of the project that imports CrypTen.

:mod:`radiopaque.engine.crypten.worker.compatibility` comes before CrypTen wherever it is imported.
"""
