"""Guards taken out, one by one: for each, the tests that must notice.

A mutant is a small change that removes one guard behind one promise of ``docs/guarantees.md``. The
TOML files beside this one, a promise each, say what is changed and which tests must then fail;
``python -m tests.mutants`` changes a copy of the tree and looks whether they do.
"""
