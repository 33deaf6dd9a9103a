"""Sixteen fp32 lanes as a numba type, so that compiled kernels keep whole vectors in registers.

numba leaves vectorising to LLVM, which gives up on loops over arrays that might overlap. These intrinsics emit
LLVM's vector instructions themselves: one AVX-512 register, two of AVX, four of NEON. Addresses are plain
integers (``Tensor.data_ptr()``) and indices count fp32 elements; nothing here checks a bound.

A kernel's cached machine code is renewed when the kernel's own file changes, not when this one does.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
_F32, _I32 = ir.FloatType(), ir.IntType(32)
_VEC, _IVEC, _MASK = (ir.VectorType(t, LANES) for t in (_F32, _I32, ir.IntType(1)))

# 2^f on [-1/2, 1/2], relative error 3e-9. The first two coefficients are exact, so that 2^f is best near f = 0:
# a decay close to one is multiplied with itself many times.
_EXP2 = (1.0, math.log(2.0), 0.24022648, 0.055503622, 0.0096185263, 0.0013390163, 0.00015321159)
# Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
_ROUND = 12582912.0


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__("f32x16")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VEC)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VEC, [float(np.float32(value))] * LANES)


def _call(builder, name: str, result, *args):
    """Call one of LLVM's overloaded intrinsics."""
    declared = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, [a.type for a in args]))
    return builder.call(declared, args)


def _fma(builder, a, b, c):
    # fmuladd, not fma: where the processor has no fused form, fma would call a slow library function.
    return _call(builder, "llvm.fmuladd.v16f32", _VEC, a, b, c)


def _address(builder, base, index, element):
    pointer = builder.inttoptr(base, element.as_pointer())
    return builder.gep(pointer, [index])


def _vector_address(builder, base, index):
    return builder.bitcast(_address(builder, base, index, _F32), _VEC.as_pointer())


def _is_full(builder, lanes):
    return builder.icmp_signed(">=", lanes, ir.Constant(lanes.type, LANES))


def _elementwise(emit, count: int):
    """An intrinsic from ``count`` vectors to one vector."""
    signature = vector(*[vector] * count)

    def codegen(context, builder, sig, args):
        return emit(builder, *args)

    if count == 1:

        def one(typingctx, a):
            return (signature, codegen) if a is vector else None

        return intrinsic(one)
    if count == 2:

        def two(typingctx, a, b):
            return (signature, codegen) if a is vector and b is vector else None

        return intrinsic(two)

    def three(typingctx, a, b, c):
        return (signature, codegen) if a is vector and b is vector and c is vector else None

    return intrinsic(three)


def _exp2(builder, x):
    """2^x, relative error 1.5e-7, for x from -126 to 127; beyond, the values there. NaN stays NaN."""
    for limit, compare in ((-126.0, "<"), (127.0, ">")):
        # An ordered comparison is false for NaN, which must go through.
        x = builder.select(builder.fcmp_ordered(compare, x, _constant(limit)), _constant(limit), x)
    rounded = builder.fadd(x, _constant(_ROUND))
    fraction = builder.fsub(x, builder.fsub(rounded, _constant(_ROUND)))
    power = _constant(_EXP2[-1])
    for c in _EXP2[-2::-1]:
        power = _fma(builder, power, fraction, _constant(c))
    exponent = builder.shl(builder.bitcast(rounded, _IVEC), ir.Constant(_IVEC, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(power, _IVEC), exponent), _VEC)


def _softplus(builder, x):
    """log(1 + e^x), relative error 3e-7 also where it is tiny (Mamba's steps start at 1e-3)."""
    magnitude = _call(builder, "llvm.fabs.v16f32", _VEC, x)
    u = _exp2(builder, builder.fmul(magnitude, _constant(-1.0 / math.log(2.0))))
    # log1p(u) = 2 artanh(s) with s = u / (2 + u) <= 1/3, as a series in s^2
    s = builder.fdiv(u, builder.fadd(u, _constant(2.0)))
    square = builder.fmul(s, s)
    series = _constant(2.0 / 15.0)
    for k in (13, 11, 9, 7, 5, 3, 1):
        series = _fma(builder, series, square, _constant(2.0 / k))
    zero = _constant(0.0)
    positive = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)
    return _fma(builder, series, s, positive)


def _sigmoid(builder, x):
    e = _exp2(builder, builder.fmul(x, _constant(-1.0 / math.log(2.0))))
    return builder.fdiv(_constant(1.0), builder.fadd(e, _constant(1.0)))


add = _elementwise(lambda b, x, y: b.fadd(x, y), 2)
sub = _elementwise(lambda b, x, y: b.fsub(x, y), 2)
mul = _elementwise(lambda b, x, y: b.fmul(x, y), 2)
fma = _elementwise(_fma, 3)
exp2 = _elementwise(_exp2, 1)
softplus = _elementwise(_softplus, 1)
sigmoid = _elementwise(_sigmoid, 1)


@intrinsic
def splat(typingctx, value):
    """All lanes equal to an fp32 scalar."""

    def codegen(context, builder, sig, args):
        undefined = ir.Constant(_VEC, ir.Undefined)
        zeros = ir.Constant(_IVEC, [0] * LANES)
        return builder.shuffle_vector(builder.insert_element(undefined, args[0], _I32(0)), undefined, zeros)

    return vector(types.float32), codegen


@intrinsic
def total(typingctx, value):
    """The sum of the lanes, halved each time: the same order on every machine."""

    def codegen(context, builder, sig, args):
        part, width = args[0], LANES
        while width > 1:
            width //= 2
            half = ir.VectorType(_I32, width)
            undefined = ir.Constant(part.type, ir.Undefined)
            low = builder.shuffle_vector(part, undefined, ir.Constant(half, list(range(width))))
            high = builder.shuffle_vector(part, undefined, ir.Constant(half, list(range(width, 2 * width))))
            part = builder.fadd(low, high)
        return builder.extract_element(part, _I32(0))

    return types.float32(vector), codegen


@intrinsic
def load(typingctx, base, index):
    """Sixteen elements from ``base`` on, plus ``index``."""

    def codegen(context, builder, sig, args):
        return builder.load(_vector_address(builder, *args), align=4)

    return vector(types.int64, types.int64), codegen


@intrinsic
def store(typingctx, base, index, value):
    def codegen(context, builder, sig, args):
        builder.store(args[2], _vector_address(builder, args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector), codegen


@intrinsic
def load_first(typingctx, base, index, lanes):
    """The first ``lanes`` elements, and zeros: memory behind them is not touched."""

    def codegen(context, builder, sig, args):
        base, index, lanes = args
        parts = cgutils.alloca_once(builder, _VEC)
        elements = builder.bitcast(parts, _F32.as_pointer())
        with builder.if_else(_is_full(builder, lanes)) as (full, partial):
            with full:
                whole = builder.load(_vector_address(builder, base, index), align=4)
                full_end = builder.block
            with partial:
                builder.store(_constant(0.0), parts)
                with cgutils.for_range(builder, lanes) as loop:
                    source = _address(builder, base, builder.add(index, loop.index), _F32)
                    builder.store(builder.load(source, align=4), builder.gep(elements, [loop.index]))
                some = builder.load(parts)
                partial_end = builder.block
        result = builder.phi(_VEC)
        result.add_incoming(whole, full_end)
        result.add_incoming(some, partial_end)
        return result

    return vector(types.int64, types.int64, types.int64), codegen


@intrinsic
def store_first(typingctx, base, index, value, lanes):
    """Write the first ``lanes`` elements only."""

    def codegen(context, builder, sig, args):
        base, index, value, lanes = args
        parts = cgutils.alloca_once(builder, _VEC)
        elements = builder.bitcast(parts, _F32.as_pointer())
        with builder.if_else(_is_full(builder, lanes)) as (full, partial):
            with full:
                builder.store(value, _vector_address(builder, base, index), align=4)
            with partial:
                builder.store(value, parts)
                with cgutils.for_range(builder, lanes) as loop:
                    target = _address(builder, base, builder.add(index, loop.index), _F32)
                    builder.store(builder.load(builder.gep(elements, [loop.index])), target, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector, types.int64), codegen


@intrinsic
def peek(typingctx, base, index):
    """One fp32 element."""

    def codegen(context, builder, sig, args):
        return builder.load(_address(builder, args[0], args[1], _F32), align=4)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def poke(typingctx, base, index, value):
    """Write one fp32 element."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _address(builder, args[0], args[1], _F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), codegen


@intrinsic
def peek_int(typingctx, base, index):
    """One int32 element, widened."""

    def codegen(context, builder, sig, args):
        return builder.sext(builder.load(_address(builder, args[0], args[1], _I32), align=4), ir.IntType(64))

    return types.int64(types.int64, types.int64), codegen


__all__ = [
    "LANES", "add", "exp2", "fma", "load", "load_first", "mul", "peek", "peek_int", "poke", "sigmoid",
    "softplus", "splat", "store", "store_first", "sub", "total",
]  # fmt: skip
