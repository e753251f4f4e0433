"""The innermost routines of products over Z_2^32 and Z_2^64, in LLVM's vector instructions.

A register tile holds some rows by one or two vectors of a product in vector registers over a whole
block of the inner dimension: the form of Goto and van de Geijn, "Anatomy of high-performance
matrix multiplication" (ACM TOMS 34(3), 2008), which compilers do not find in scalar loops. All
sums wrap, so the order of additions is free and every result is exact.

**Words.** Both factors are ring elements: one multiplication and one addition an element.

**Limbs.** One factor is *short*: every entry, read as two's complement, fits 16 bits. The other is
split, x = low + 2^16 high with low in [-2^15, 2^15), and

    w * x = w * low + 2^16 (w * high)        mod 2^32,

where high counts mod 2^16 alone. Both products are of 16-bit numbers, and x86 multiplies and adds
two such pairs in every 32-bit lane (vpmaddwd; with VNNI, one instruction adds to the sum as well,
vpdpwssd). A lane therefore holds two consecutive steps of the inner dimension, the first in its
low half. The largest sum of one instruction, 2 * (-2^15)^2 = 2^31, wraps and is exact mod 2^32.
A short factor has dtype int32, a split one uint32; that is how a tile knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic


def _compiled_features() -> frozenset[str]:
    """Features that Numba compiles with: the last part of what it keys its cache by."""
    stated = cpu_target.target_context.codegen().magic_tuple()[-1]
    return frozenset(name[1:] for name in stated.split(",") if name[:1] == "+")


FEATURES = _compiled_features()
"""The host's features as Numba's settings restrict them: NUMBA_CPU_FEATURES, NUMBA_ENABLE_AVX."""

VECTOR_BYTES = 64 if "avx512f" in FEATURES else 32 if "avx2" in FEATURES else 16
"""Width of the machine's vector registers."""

ROWS = 4 if VECTOR_BYTES == 32 else 8
"""Rows of the register tile: its 2 * ROWS sums fit 16 registers (AVX2) or 32 (AVX-512, NEON)."""

PANEL_BYTES = 2 * VECTOR_BYTES
"""One row of the register tile: two vectors."""

_PAIR_PRODUCTS = {
    64: ("avx512bw", "llvm.x86.avx512.pmaddw.d.512"),
    32: ("avx2", "llvm.x86.avx2.pmadd.wd"),
    16: ("sse2", "llvm.x86.sse2.pmadd.wd"),
}

HAS_LIMBS = _PAIR_PRODUCTS[VECTOR_BYTES][0] in FEATURES
"""Whether the machine has the instruction that limbs need."""

LIMBS_PAY = HAS_LIMBS and ("avx512vnni" in FEATURES or VECTOR_BYTES == 16)
"""Whether limbs are faster. Time by words over time by limbs, for ResNet-18's layers at 224 on a
Zen 5 core: AVX-512 with VNNI 1.13, AVX-512 without 1.02, AVX2 1.01, SSE2 2.35."""

INDEX = ir.IntType(types.intp.bitwidth)
_LANE = ir.IntType(32)


def _index(value: int) -> Any:
    return ir.Constant(INDEX, value)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Pointer to element ``offset`` of a flat array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


class _Vectors:
    """Unaligned vector loads and stores, and products, of one element type."""

    def __init__(self, builder: Any, element_bits: int) -> None:
        self.lanes = VECTOR_BYTES * 8 // element_bits
        self.vector = ir.VectorType(ir.IntType(element_bits), self.lanes)
        self._builder = builder
        self._align = element_bits // 8

    def constant(self, value: int) -> Any:
        return ir.Constant(self.vector, [value] * self.lanes)

    def load(self, pointer: Any, number: int = 0) -> Any:
        return self._builder.load(self._at(pointer, number), align=self._align)

    def store(self, value: Any, pointer: Any, number: int = 0) -> None:
        self._builder.store(value, self._at(pointer, number), align=self._align)

    def load_spread(self, pointer: Any) -> Any:
        return self.spread(self._builder.load(pointer))

    def lane(self, index: Any) -> Any:
        """An index as an element."""
        narrow = self.vector.element.width < INDEX.width
        return self._builder.trunc(index, self.vector.element) if narrow else index

    def spread(self, value: Any) -> Any:
        """One element in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self._builder.insert_element(undefined, value, ir.Constant(_LANE, 0))
        zeros = ir.Constant(ir.VectorType(_LANE, self.lanes), [0] * self.lanes)
        return self._builder.shuffle_vector(first, undefined, zeros)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._builder.mul(a, b)

    def multiply_pairs(self, a: Any, b: Any) -> Any:
        """In every 32-bit lane, the sum of the products of both signed halves."""
        halves = ir.VectorType(ir.IntType(16), 2 * self.lanes)
        name = _PAIR_PRODUCTS[VECTOR_BYTES][1]
        module = self._builder.module
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(self.vector, [halves, halves]), name
        )
        factors = [self._builder.bitcast(factor, halves) for factor in (a, b)]
        return self._builder.call(function, factors)

    def _at(self, pointer: Any, number: int) -> Any:
        start = self._builder.gep(pointer, [_index(number * self.lanes)])
        return self._builder.bitcast(start, self.vector.as_pointer())


@intrinsic
def copy_panel_row(context, source, source_start, target, target_start):  # type: ignore[no-untyped-def]
    """target[target_start + j] = source[source_start + j] for the elements of one panel row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, target.dtype.bitwidth)
        read = _address(context, builder, signature.args[0], *arguments[0:2])
        written = _address(context, builder, signature.args[2], *arguments[2:4])
        halves = [vectors.load(read, half) for half in range(2)]
        for half in range(2):
            vectors.store(halves[half], written, half)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), generate


def _spread_vector(stride: int) -> Any:
    @intrinsic
    def spread(context, source, start, place, count, target, at):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            bits = target.dtype.bitwidth
            vectors = _Vectors(builder, bits)
            source_at = _address(context, builder, signature.args[0], *arguments[0:2])
            target_at = _address(context, builder, signature.args[4], *arguments[4:6])
            values = vectors.load(source_at)
            if stride > 1:
                chosen = [stride * lane for lane in range(vectors.lanes)]
                kinds = ir.VectorType(_LANE, vectors.lanes)
                others = vectors.load(source_at, 1)
                values = builder.shuffle_vector(values, others, ir.Constant(kinds, chosen))
            place, count = [vectors.spread(vectors.lane(value)) for value in arguments[2:4]]
            lanes = ir.Constant(vectors.vector, list(range(vectors.lanes)))
            inside = builder.icmp_unsigned("<", builder.add(place, lanes), count)
            vectors.store(builder.select(inside, values, vectors.constant(0)), target_at)
            return context.get_dummy_value()

        index = types.intp
        return types.void(source, index, index, index, target, index), generate

    return spread


spread_vector = _spread_vector(1)
"""target[at + j] = source[start + j] where 0 <= place + j < count, else 0; j over one vector.

All elements of the source's vector are read.
"""

spread_every_other = _spread_vector(2)
"""The same with source[start + 2 * j]; two vectors are read."""


@intrinsic
def split_vectors(context, source, first, second, target, start, pitch):  # type: ignore[no-untyped-def]
    """The limbs of one vector of pairs (source[first + j], source[second + j]).

    The high limbs go to target[start + j], the low ones to target[start + pitch + j]. All of it is
    uint32 and flat.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, 32)
        source_at = [
            _address(context, builder, signature.args[0], arguments[0], at) for at in arguments[1:3]
        ]
        target_at = _address(context, builder, signature.args[3], *arguments[3:5])
        half, low_bits = vectors.constant(16), vectors.constant(0xFFFF)
        a, b = [vectors.load(at) for at in source_at]
        low = builder.or_(builder.and_(a, low_bits), builder.shl(b, half))
        # The low limb is signed: where it is negative, the high one is larger by 1.
        a, b = [builder.add(word, vectors.constant(0x8000)) for word in (a, b)]
        high = builder.or_(builder.lshr(a, half), builder.and_(b, vectors.constant(0xFFFF0000)))
        vectors.store(high, target_at)
        vectors.store(low, builder.gep(target_at, [arguments[5]]))
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, index, target, index, index), generate


def _accumulate(builder: Any, steps: Any, sums: list[Any], step_sums: Callable[..., Any]) -> Any:
    """The sums after ``steps`` >= 1 calls of step_sums(step, sums), as a loop in registers."""
    before = builder.block
    body = builder.append_basic_block("steps.body")
    after = builder.append_basic_block("steps.after")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(INDEX)
    old = [builder.phi(total.type) for total in sums]
    new = step_sums(step, old)
    following = builder.add(step, _index(1))
    step.add_incoming(_index(0), before)
    step.add_incoming(following, body)
    for phi, start, end in zip(old, sums, new, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(end, body)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, after)
    builder.position_at_end(after)
    return new


def _register_tile(rows: int, count: int) -> Any:
    """The tile of ``rows`` rows by ``count`` vectors; panels have two vectors in any case."""

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        context, left, left_start, right, right_start, depth, out, start, pitch, adding
    ):
        if adding != types.boolean:
            raise TypeError("adding must be a bool")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors = _Vectors(builder, out.dtype.bitwidth)
            left_at = _address(context, builder, signature.args[0], *arguments[0:2])
            right_at = _address(context, builder, signature.args[2], *arguments[2:4])
            depth = arguments[4]
            width = _index(2 * vectors.lanes)
            limbs = types.int32 in (left.dtype, right.dtype)
            multiply = vectors.multiply_pairs if limbs else vectors.multiply

            def run(left_at: Any, right_at: Any, sums: list[Any]) -> Any:
                def step_sums(step: Any, sums: list[Any]) -> list[Any]:
                    row = builder.gep(right_at, [builder.mul(step, width)])
                    right_row = [vectors.load(row, number) for number in range(count)]
                    left_row = builder.gep(left_at, [builder.mul(step, _index(rows))])
                    new = []
                    for i in range(rows):
                        factor = vectors.load_spread(builder.gep(left_row, [_index(i)]))
                        for j in range(count):
                            product = multiply(factor, right_row[j])
                            new.append(builder.add(sums[i * count + j], product))
                    return new

                return _accumulate(builder, depth, sums, step_sums)

            sums = run(left_at, right_at, [vectors.constant(0)] * (rows * count))
            if limbs:
                sums = [builder.shl(total, vectors.constant(16)) for total in sums]
                if left.dtype == types.int32:
                    right_at = builder.gep(right_at, [builder.mul(depth, width)])
                else:
                    left_at = builder.gep(left_at, [builder.mul(depth, _index(rows))])
                sums = run(left_at, right_at, sums)
            out_at = _address(context, builder, signature.args[5], *arguments[5:7])
            with builder.if_else(arguments[8]) as (then, otherwise):
                for branch, adds in ((then, True), (otherwise, False)):
                    with branch:
                        for i in range(rows):
                            at = builder.gep(out_at, [builder.mul(arguments[7], _index(i))])
                            for j in range(count):
                                total = sums[i * count + j]
                                if adds:
                                    total = builder.add(vectors.load(at, j), total)
                                vectors.store(total, at, j)
            return context.get_dummy_value()

        index = types.intp
        arguments = (left, index, right, index, index, out, index, index, types.boolean)
        return types.void(*arguments), generate

    return tile


register_tile = _register_tile(ROWS, 2)
"""out [ROWS, columns] = or += (``adding``) left [depth, ROWS] transposed * right [depth, columns].

The arrays are flat, ``*start`` element offsets, ``pitch`` the distance of two rows of the result,
``columns`` PANEL_BYTES / item size, ``depth`` at least 1. With limbs depth counts pairs of steps,
and the split factor is two such blocks, the high limbs first.
"""

narrow_tile = _register_tile(ROWS, 1)
"""The same for the first half of the columns; right has the same layout."""

line_tile = _register_tile(1, 2)
"""The same for one row: left is [depth]."""


@intrinsic
def window_tile(  # type: ignore[no-untyped-def]
    context, image, image_start, taps, weights, weights_start, out, out_start
):
    """out[out_start + j] = the sum over k of weights[weights_start + k] image[at + taps[k] + j].

    ``at`` is image_start; j runs over the elements of one vector. All arrays are flat.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, out.dtype.bitwidth)
        image_at = _address(context, builder, signature.args[0], *arguments[0:2])
        weights_at = _address(context, builder, signature.args[3], *arguments[3:5])
        out_at = _address(context, builder, signature.args[5], *arguments[5:7])
        offsets = context.make_array(signature.args[2])(context, builder, arguments[2])

        def step_sums(step: Any, sums: list[Any]) -> list[Any]:
            offset = builder.load(builder.gep(offsets.data, [step]))
            factor = vectors.load_spread(builder.gep(weights_at, [step]))
            product = builder.mul(factor, vectors.load(builder.gep(image_at, [offset])))
            return [builder.add(sums[0], product)]

        (total,) = _accumulate(builder, offsets.nitems, [vectors.constant(0)], step_sums)
        vectors.store(total, out_at)
        return context.get_dummy_value()

    index = types.intp
    arguments = (image, index, taps, weights, index, out, index)
    return types.void(*arguments), generate
