"""Sixteen numbers at once in numba's kernels, whatever vector registers the processor has.

LLVM finds no way of its own from a row of comparisons to the bits of a number and back; written as vector instructions,
it is two or three of them. They read and write LANES items from a place on: the caller sees to it that those exist.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
_INT32, _MASK = ir.IntType(32), ir.VectorType(ir.IntType(1), LANES)


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


@intrinsic
def equal_bits(typing_context, array, at, value):
    """Bit j says whether ``array[at + j] == value``, j = 0 .. LANES - 1; for a contiguous array of integers, uint64."""

    def generate(context, builder, signature, arguments):
        item = context.get_value_type(signature.args[0].dtype)
        vector = ir.VectorType(item, LANES)
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], vector)
        nothing = ir.Constant(vector, ir.Undefined)
        single = builder.insert_element(nothing, arguments[2], ir.Constant(_INT32, 0))
        everywhere = builder.shuffle_vector(single, nothing, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))
        equal = builder.icmp_signed("==", builder.load(address, align=item.width // 8), everywhere)
        return builder.zext(builder.bitcast(equal, ir.IntType(LANES)), ir.IntType(64))

    return types.uint64(array, types.int64, array.dtype), generate


@intrinsic
def put_bits(typing_context, array, at, bits):
    """Set ``array[at + j]`` to bit j of ``bits``, 0 or 1, j = 0 .. LANES - 1; for a contiguous array of float32."""

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), LANES)
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], vector)
        mask = builder.bitcast(builder.trunc(arguments[2], ir.IntType(LANES)), _MASK)
        builder.store(builder.uitofp(mask, vector), address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate
