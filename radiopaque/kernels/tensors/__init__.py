"""The same loops on torch tensors: for a GPU, and on the processor for tests.

The only room besides CrypTen's worker that imports torch; whoever does not configure
``device = "cuda"`` never loads it.

torch has no arithmetic on uint16, uint32 and uint64, so words are kept as int16, int32 and int64 of
the same bits: sums, differences, products and exclusive ors are those of unsigned words. Where a
word's value counts, it is widened to int64 first and shifted down without its sign
(:mod:`radiopaque.kernels.tensors.words`).
"""
