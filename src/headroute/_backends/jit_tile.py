"""The one product under both GEMMs of the numba backend: C[rows, columns] (+)= A[rows, depth]
B[depth, columns].

LLVM's auto-vectoriser finds no register tiling in nested loops, so the tile is emitted as LLVM
vectors: its accumulators stay in registers over the whole depth, elements of A are broadcast,
vectors of B are loaded. Multiply and add may be contracted, which makes them one instruction where
the CPU has it. The accumulators start at zero, so that a caller who cuts the depth into segments
gets the small rounding error of a two-level sum. An element's value does not depend on where it
lies in a tile.

A lies in strips of `STRIP` columns, [depth / STRIP, rows, STRIP]: all rows of a tile are then
reached from one pointer with constant displacements, where row pointers would not fit in registers.
"""

# ruff: noqa: ARG001  numba sets the signatures of intrinsics and their code generators

import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

STRIP = 16

# numba types its decorator as if intrinsics were called with the typing context.
_intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic


def tile_shape() -> tuple[int, int]:
    """Return (lanes, rows) of this CPU.

    rows × 2 accumulators leave registers for two vectors of B and a broadcast.
    """
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 14
    if features.get("avx2") and features.get("fma"):
        return 8, 6
    return 4, 12 if platform.machine() in ("aarch64", "arm64") else 6


def tile_product(rows: int, vectors: int, lanes: int) -> Callable[..., None]:
    """Return a function for jitted code that computes a tile of `rows` × `vectors * lanes`.

    Its arguments are (a, a_start, b, b_start, depth, c, c_start, c_row, c_strip, add): flat float32
    arrays and the index of the tile's first element in each; A in strips; B a panel [depth, vectors
    * lanes] without gaps; depth >= 1. Element (row, column) of C is at `c_start + row * c_row +
    column // STRIP * c_strip + column % STRIP`; the product is added to it if `add`.
    """

    @_intrinsic
    def product(
        typing_context: Any,
        a: Any,
        a_start: Any,
        b: Any,
        b_start: Any,
        depth: Any,
        c: Any,
        c_start: Any,
        c_row: Any,
        c_strip: Any,
        add: Any,
    ) -> Any:
        size = types.intp
        signature = types.void(a, size, b, size, size, c, size, size, size, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), lanes)
            undefined = ir.Constant(vector, ir.Undefined)
            all_first = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
            index = ir.IntType(64)

            def number(value: int) -> Any:
                return ir.Constant(index, value)

            def element(argument: int) -> Any:
                make_array = context.make_array(signature.args[argument])
                array = make_array(context, builder, arguments[argument])
                return builder.gep(array.data, [arguments[argument + 1]])

            def as_vector(pointer: Any) -> Any:
                return builder.bitcast(pointer, vector.as_pointer())

            strips, panel, c_tile = element(0), element(2), element(5)
            depth, row_step, strip_step, add = (arguments[i] for i in (4, 7, 8, 9))
            names = [(row, v) for row in range(rows) for v in range(vectors)]

            before = builder.block
            loop = builder.append_basic_block("depth")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(index)
            sums = [builder.phi(vector) for _ in names]
            # Column `step` of A: strip number step // STRIP, place step % STRIP in it.
            whole = builder.and_(step, number(-STRIP))
            offset = builder.add(builder.mul(whole, number(rows - 1)), step)
            column = builder.gep(strips, [offset])
            b_row = builder.gep(panel, [builder.mul(step, number(vectors * lanes))])
            b_vectors = [
                builder.load(as_vector(builder.gep(b_row, [number(v * lanes)])), align=4)
                for v in range(vectors)
            ]
            results = []
            for (row, v), total in zip(names, sums, strict=True):
                if v == 0:
                    scalar = builder.load(builder.gep(column, [number(row * STRIP)]))
                    zero = ir.Constant(ir.IntType(32), 0)
                    first = builder.insert_element(undefined, scalar, zero)
                    broadcast = builder.shuffle_vector(first, undefined, all_first)
                product = builder.fmul(broadcast, b_vectors[v], flags=("contract",))
                results.append(builder.fadd(product, total, flags=("contract",)))
            next_step = builder.add(step, number(1))
            builder.cbranch(builder.icmp_signed("<", next_step, depth), loop, after)
            step.add_incoming(number(0), before)
            step.add_incoming(next_step, loop)
            for total, result in zip(sums, results, strict=True):
                total.add_incoming(ir.Constant(vector, None), before)
                total.add_incoming(result, loop)

            def store(combine: Callable[[Any, Any], Any]) -> None:
                for (row, v), result in zip(names, results, strict=True):
                    column = v * lanes
                    offset = builder.add(
                        builder.mul(row_step, number(row)),
                        builder.mul(strip_step, number(column // STRIP)),
                    )
                    place = builder.gep(c_tile, [builder.add(offset, number(column % STRIP))])
                    pointer = as_vector(place)
                    builder.store(combine(pointer, result), pointer, align=4)

            builder.position_at_end(after)
            with builder.if_else(add) as (then, otherwise):
                with then:
                    store(
                        lambda pointer, result: builder.fadd(builder.load(pointer, align=4), result)
                    )
                with otherwise:
                    store(lambda _, result: result)
            return context.get_dummy_value()

        return signature, generate

    return product


@_intrinsic
def scale_strip(
    typing_context: Any, source: Any, source_at: Any, factor: Any, target: Any, target_at: Any
) -> Any:
    """target[target_at:][:STRIP] = source[source_at:][:STRIP] * factor, for flat float32 arrays.

    In a loop numba would check that source and target do not overlap, and every index for its sign.
    """
    signature = types.void(source, types.intp, types.float32, target, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), STRIP)
        lane = ir.IntType(32)

        def place(number: int) -> Any:
            array = context.make_array(signature.args[number])(context, builder, arguments[number])
            first = builder.gep(array.data, [arguments[number + 1]])
            return builder.bitcast(first, vector.as_pointer())

        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, arguments[2], ir.Constant(lane, 0))
        factors = builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(lane, STRIP), None)
        )
        product = builder.fmul(builder.load(place(0), align=4), factors)
        builder.store(product, place(3), align=4)
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of array[at] of a flat array; `at` may lie outside."""
    signature = types.void(array, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), byte)
        builder.call(
            function, [place, ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)]
        )
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bit pattern is an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@_intrinsic
def bits_of_float(typing_context: Any, value: Any) -> Any:
    """The bit pattern of a float32 as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate
