"""The one product under both GEMMs of the numba backend: C[rows, columns] += A[rows, depth]
B[depth, columns].

LLVM's auto-vectoriser finds no register tiling in nested loops, so the tile is emitted as LLVM
vectors: its accumulators stay in registers over the whole depth, elements of A are broadcast,
vectors of B are loaded. Multiply and add may be contracted, which makes them one instruction where
the CPU has it. The accumulators start at zero and are added to C at the end, so that a caller who
cuts the depth into segments gets the small rounding error of a two-level sum. An element's value
does not depend on where it lies in a tile.
"""

# ruff: noqa: ARG001  numba sets the signatures of intrinsics and their code generators

import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

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
    """Return a function for jitted code that adds a product to a tile of `rows` × `vectors *
    lanes`.

    Its arguments are (a, a_start, a_stride, b, b_start, depth, c, c_start, c_stride): flat float32
    arrays, the index of the tile's first element in each, the distance between rows, and depth >=
    1. B is a panel [depth, vectors * lanes] without gaps.
    """

    @_intrinsic
    def product(
        typing_context: Any,
        a: Any,
        a_start: Any,
        a_stride: Any,
        b: Any,
        b_start: Any,
        depth: Any,
        c: Any,
        c_start: Any,
        c_stride: Any,
    ) -> Any:
        size = types.intp
        signature = types.void(a, size, size, b, size, size, c, size, size)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), lanes)
            undefined = ir.Constant(vector, ir.Undefined)
            all_first = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
            index = ir.IntType(64)

            def address(base: Any, *factors: Any) -> Any:
                offset = factors[0]
                for factor in factors[1:]:
                    offset = builder.mul(offset, ir.Constant(index, factor))
                return builder.gep(base, [offset])

            def element(number: int) -> Any:
                make_array = context.make_array(signature.args[number])
                array = make_array(context, builder, arguments[number])
                return address(array.data, arguments[number + 1])

            def vectors_at(base: Any) -> list[Any]:
                starts = [address(base, ir.Constant(index, v * lanes)) for v in range(vectors)]
                return [builder.bitcast(start, vector.as_pointer()) for start in starts]

            a_rows = [address(element(0), arguments[2], row) for row in range(rows)]
            c_row = element(6)
            tile = [
                pointer
                for row in range(rows)
                for pointer in vectors_at(address(c_row, arguments[8], row))
            ]
            panel = element(3)

            before = builder.block
            loop = builder.append_basic_block("depth")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(index)
            sums = [builder.phi(vector) for _ in tile]
            b_vectors = [
                builder.load(pointer, align=4)
                for pointer in vectors_at(address(panel, step, vectors * lanes))
            ]
            results = []
            for number, total in enumerate(sums):
                if number % vectors == 0:
                    scalar = builder.load(address(a_rows[number // vectors], step))
                    zero = ir.Constant(ir.IntType(32), 0)
                    first = builder.insert_element(undefined, scalar, zero)
                    broadcast = builder.shuffle_vector(first, undefined, all_first)
                product = builder.fmul(broadcast, b_vectors[number % vectors], flags=("contract",))
                results.append(builder.fadd(product, total, flags=("contract",)))
            next_step = builder.add(step, ir.Constant(index, 1))
            builder.cbranch(builder.icmp_signed("<", next_step, arguments[5]), loop, after)
            step.add_incoming(ir.Constant(index, 0), before)
            step.add_incoming(next_step, loop)
            for total, result in zip(sums, results, strict=True):
                total.add_incoming(ir.Constant(vector, None), before)
                total.add_incoming(result, loop)

            builder.position_at_end(after)
            for pointer, result in zip(tile, results, strict=True):
                total = builder.fadd(builder.load(pointer, align=4), result)
                builder.store(total, pointer, align=4)
            return context.get_dummy_value()

        return signature, generate

    return product


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
