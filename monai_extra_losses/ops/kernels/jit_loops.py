"""The loops of `jit.py` over voxels, which numba compiles: one pass over the scores, and nothing as long as they.

One file, because numba keeps what it compiled until the file of a loop changes, and would not see a change in another.

Scores are read where they lie: (b, C, m) with the voxels of a class side by side, as one flat array with the strides of
samples and classes. A chunk is some of the voxels of one sample; its sums are its own, so that their total does not
depend on which thread computed it. Within a chunk tiles of a few hundred voxels stay in the nearest cache: sums over a
tile are float32, over tiles float64.

The loops of one way take the same arguments after what describes the data and what is asked; some have no use for all.

exp, log, log(1+x) and exp(x)-1 are polynomials, which become vector instructions: relative errors below 2e-7 (a test).
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# NaN and infinite numbers keep their meaning. Sums over a tile may be added in any order, and nothing else: what is
# taken away in two steps would lose its digits in one.
_EXACT = {"contract", "nsz", "arcp"}
_SUMS = _EXACT | {"reassoc"}
_f = np.float32
_LOWEST, _HIGHEST, _INFINITE = _f(-87.3), _f(88.7), _f(np.inf)  # exp is 0 below, infinite above
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f(1.44269504), _f(0.693359375), _f(-2.12194440e-4)
_HALF, _ZERO, _ONE, _TWO, _SQRT_HALF = _f(0.5), _f(0), _f(1), _f(2), _f(0.70710678)
_SMALL = _f(1e-30)  # a rest 1 - p below this has lost digits

# The formulas that the loops know, by their number.
CROSS_ENTROPY, FOCAL, POLY, GENERALIZED, POWER, ERROR, HINGE, SQUARED_HINGE = range(8)
# Rows of the sums of a chunk, before those of the formulas.
VOLUME, COUNT, OVERLAP, OF_P, OF_SQUARE, OF_LOG, OF_LOG_TRUE, OF_LOG_REST, OF_ERROR, FORMULAS = range(10)
WRONG_LABEL, OUT_OF_RANGE = 1, 2  # the status of a chunk, 0 where all is well
_FEW = 8  # up to so many classes each is compared with the labels; beyond, the own one is looked up


def _bits_of(given, wanted):
    """A function of numba that reads the bits of one type as another."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(wanted))

    return intrinsic(lambda context, number: (wanted(given), code))


_as_float, _as_bits = _bits_of(types.int32, types.float32), _bits_of(types.float32, types.int32)


def _loop(fastmath):
    """Compile at the first call, let go of Python's lock, and keep what was compiled for the next process."""

    def decorate(function):
        options = {"fastmath": fastmath, "nogil": True, "error_model": "numpy", "boundscheck": False}
        try:
            return njit(**options, cache=True)(function)
        except RuntimeError:  # numba finds no folder to write to
            return njit(**options)(function)

    return decorate


_forward, _backward = _loop(_SUMS), _loop(_EXACT)
_sum = njit(fastmath=_SUMS, error_model="numpy", boundscheck=False)
_exact = njit(fastmath=_EXACT, error_model="numpy", boundscheck=False)


@_exact
def _reduced(x):
    """x = k ln 2 + r with a whole number k, and (exp(r) - 1 - r) / r^2."""
    k = np.floor(x * _LOG2_E + _HALF)
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    q = _f(1.9875691500e-4)
    q = q * r + _f(1.3981999507e-3)
    q = q * r + _f(8.3334519073e-3)
    q = q * r + _f(4.1665795894e-2)
    q = q * r + _f(1.6666665459e-1)
    q = q * r + _f(5.0000001201e-1)
    return k, r, q


@_exact
def exp(x):
    """exp(x); 0 below -87.3, infinite above 88.7."""
    k, r, q = _reduced(_LOWEST if x < _LOWEST else x)
    value = (q * r * r + r + _ONE) * _as_float((np.int32(k) + np.int32(127)) << np.int32(23))
    value = _INFINITE if x > _HIGHEST else value
    return _ZERO if x < _LOWEST else value


@_exact
def expm1(x):
    """exp(x) - 1 of x <= 0, without cancellation."""
    k, r, q = _reduced(_LOWEST if x < _LOWEST else x)
    near = q * r * r + r
    return near if k == _ZERO else (near + _ONE) * _as_float((np.int32(k) + np.int32(127)) << np.int32(23)) - _ONE


@_exact
def log(x):
    """log(x) of a normal or infinite x > 0; about -88 of 0."""
    bits = _as_bits(x)
    k = _f((bits >> np.int32(23)) - np.int32(126))
    m = _as_float((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000))  # in [1/2, 1)
    low = m < _SQRT_HALF
    k = k - _ONE if low else k
    r = m + m - _ONE if low else m - _ONE
    z = r * r
    q = _f(7.0376836292e-2)
    q = q * r - _f(1.1514610310e-1)
    q = q * r + _f(1.1676998740e-1)
    q = q * r - _f(1.2420140846e-1)
    q = q * r + _f(1.4249322787e-1)
    q = q * r - _f(1.6668057665e-1)
    q = q * r + _f(2.0000714765e-1)
    q = q * r - _f(2.4999993993e-1)
    q = q * r + _f(3.3333331174e-1)
    value = r + (q * r * z + k * _LN2_LOW - _HALF * z) + k * _LN2_HIGH
    return value if x < _INFINITE else x  # so is that of NaN


@_exact
def log1p(x):
    """log(1 + x) of -1/2 <= x <= 1: 2 artanh(x / (2 + x))."""
    z = x / (_TWO + x)
    y = z * z
    q = _f(1 / 17)
    q = q * y + _f(1 / 15)
    q = q * y + _f(1 / 13)
    q = q * y + _f(1 / 11)
    q = q * y + _f(1 / 9)
    q = q * y + _f(1 / 7)
    q = q * y + _f(1 / 5)
    q = q * y + _f(1 / 3)
    return _TWO * (q * y * z + z)


@_exact
def _less(x, top, log_total):
    """log p of a score, whose two steps keep the digits of a p near 1."""
    return x - top - log_total


@_exact
def raise_all(x, exponent):
    """x ^ exponent of 0 <= x <= 1, in place; what is below 1e-30 as that, but 0 as 0 where the exponent is above 0."""
    n = x.shape[0]
    if exponent == _TWO:
        for i in range(n):
            x[i] *= x[i]
    elif exponent == _f(1.5):
        for i in range(n):
            x[i] *= np.sqrt(x[i])
    elif exponent != _ONE:
        at_zero = _ZERO if exponent > _ZERO else exp(exponent * log(_SMALL))
        for i in range(n):
            value = exp(exponent * log(_SMALL if x[i] < _SMALL else x[i]))
            x[i] = at_zero if x[i] == _ZERO else value


@_exact
def losses_of(code, number, log_pt, out):
    """A formula of `formulas.py` of log-probabilities, or of margins; ERROR is (1-p)^q."""
    n = log_pt.shape[0]
    if code == CROSS_ENTROPY:
        for i in range(n):
            out[i] = -log_pt[i]
    elif code == FOCAL and number == _TWO:
        for i in range(n):
            miss = expm1(log_pt[i])
            out[i] = -miss * miss * log_pt[i]
    elif code == FOCAL:
        for i in range(n):
            miss = -expm1(log_pt[i])
            out[i] = -exp(number * log(_SMALL if miss < _SMALL else miss)) * log_pt[i]
    elif code == POLY:
        for i in range(n):
            out[i] = -log_pt[i] - number * expm1(log_pt[i])
    elif code == GENERALIZED:
        for i in range(n):
            out[i] = -expm1(number * log_pt[i]) / number
    elif code == ERROR:
        for i in range(n):
            out[i] = -expm1(log_pt[i])
        raise_all(out, number)
    elif code == HINGE:
        for i in range(n):
            out[i] = _ZERO if log_pt[i] >= _ONE else _ONE - log_pt[i]
    elif code == SQUARED_HINGE:
        for i in range(n):
            short = _ZERO if log_pt[i] >= _ONE else _ONE - log_pt[i]
            out[i] = short * short
    else:
        for i in range(n):
            loss = -log_pt[i]
            out[i] = exp(number * log(_f(1e-7) if loss < _f(1e-7) else loss))


@_exact
def slopes_of(code, number, log_pt, out):
    """Its derivative."""
    n = log_pt.shape[0]
    if code == CROSS_ENTROPY:
        for i in range(n):
            out[i] = -_ONE
    elif code == FOCAL and number == _TWO:
        for i in range(n):
            miss = -expm1(log_pt[i])
            limited = _f(-1e30) if log_pt[i] < _f(-1e30) else log_pt[i]
            out[i] = (_TWO * (_ONE - miss) * limited - miss) * miss
    elif code == FOCAL:
        for i in range(n):
            miss = -expm1(log_pt[i])
            limited = _f(-1e30) if log_pt[i] < _f(-1e30) else log_pt[i]
            power = exp((number - _ONE) * log(_SMALL if miss < _SMALL else miss))
            out[i] = (number * (_ONE - miss) * limited - miss) * power
    elif code == POLY:
        for i in range(n):
            out[i] = -number * exp(log_pt[i]) - _ONE
    elif code == GENERALIZED:
        for i in range(n):
            out[i] = -exp(number * log_pt[i])
    elif code == ERROR:
        for i in range(n):
            out[i] = -expm1(log_pt[i])
        raise_all(out, number - _ONE)
        for i in range(n):
            out[i] *= -number * exp(log_pt[i])
    elif code == HINGE:
        for i in range(n):
            out[i] = _ZERO if log_pt[i] >= _ONE else log_pt[i] * _ZERO - _ONE  # NaN stays
    elif code == SQUARED_HINGE:
        for i in range(n):
            out[i] = _ZERO if log_pt[i] >= _ONE else _TWO * log_pt[i] - _TWO
    else:
        for i in range(n):
            loss = -log_pt[i]
            slope = -number * exp((number - _ONE) * log(_f(1e-7) if loss < _f(1e-7) else loss))
            out[i] = _ZERO if loss < _f(1e-7) else slope


@_exact
def _read_labels(t, weights, weighted, num_classes, label, weight):
    """The labels and weights of a tile; how many labels are none of 0..C-1."""
    wrong = 0
    for i in range(label.shape[0]):
        of_voxel = weights[i] if weighted else _ONE
        weight[i] = of_voxel
        within = (t[i] >= 0) & (t[i] <= num_classes - 1)  # NaN is neither
        value = t[i] if within else t.dtype.type(0)
        label[i] = np.int32(value)
        if not (within & (label[i] == value)) and of_voxel != _ZERO:
            wrong += 1
    return wrong


@_exact
def _largest(x, start, by_class, num_classes, top):
    """The largest score of each voxel of a tile."""
    n = top.shape[0]
    y = x[start : start + n]
    for i in range(n):
        top[i] = y[i]
    for c in range(1, num_classes):
        y = x[start + c * by_class : start + c * by_class + n]
        for i in range(n):
            top[i] = y[i] if y[i] > top[i] else top[i]


@_exact
def _exponentials(x, start, by_class, num_classes, weight, weighted, top, e, total):
    """exp(x - top) of a tile, and their sums; whatever stands in a voxel of weight 0, NaN too, is taken as 0."""
    n = top.shape[0]
    for i in range(n):
        total[i] = _ZERO
    for c in range(num_classes):
        y = x[start + c * by_class : start + c * by_class + n]
        row = e[c, :n]
        if weighted:
            for i in range(n):
                value = exp(_ZERO if weight[i] == _ZERO else y[i] - top[i])
                row[i] = value
                total[i] += value
        else:
            for i in range(n):
                value = exp(y[i] - top[i])
                row[i] = value
                total[i] += value


@_exact
def _log_true(x, start, by_class, num_classes, label, weight, top, e, total, log_total, others, out):
    """log p of the own class of each voxel, the logarithm of `total`, and the sum of e of the other classes."""
    n = top.shape[0]
    for i in range(n):
        others[i] = _ZERO
    for c in range(num_classes):
        row = e[c, :n]
        y = x[start + c * by_class : start + c * by_class + n]
        if num_classes <= _FEW:
            for i in range(n):
                own = label[i] == c
                others[i] += _ZERO if own else row[i]
                out[i] = y[i] - top[i] if own else out[i]
        else:
            for i in range(n):
                others[i] += _ZERO if label[i] == c else row[i]
    if num_classes > _FEW:
        for i in range(n):
            out[i] = x[start + label[i] * by_class + i] - top[i]
    for i in range(n):  # where the others are less than 1/2 the own is the likeliest, e = 1, and they have more digits
        log_total[i] = log1p(others[i] if others[i] < _HALF else _HALF) if others[i] < _HALF else log(total[i])
        out[i] = _ZERO if weight[i] == _ZERO else out[i] - log_total[i]  # whatever stands there


@_exact
def _others(num_classes, label, e, others):
    """The sum of e of the classes that are not a voxel's own."""
    n = label.shape[0]
    for i in range(n):
        others[i] = _ZERO
    for c in range(num_classes):
        row = e[c, :n]
        for i in range(n):
            others[i] += _ZERO if label[i] == c else row[i]


@_sum
def _total(values):
    """The sum of the values of a tile."""
    of_all = _ZERO
    for i in range(values.shape[0]):
        of_all += values[i]
    return of_all


@_sum
def _total_where(values, weight, label, positive, inside):
    """The weighted sum of the values of a tile inside a class, or outside."""
    of_side = _ZERO
    for i in range(values.shape[0]):
        of_side += values[i] * weight[i] if (label[i] == positive) == inside else _ZERO
    return of_side


@_sum
def _add_by_class(values, label, num_classes, sums):
    """Add values to the sums of their classes."""
    if num_classes <= _FEW:
        for c in range(num_classes):
            of_class = _ZERO
            for i in range(values.shape[0]):
                of_class += values[i] if label[i] == c else _ZERO
            sums[c] += of_class
    else:
        for i in range(values.shape[0]):
            sums[label[i]] += values[i]


@_exact
def _likeliest(e, num_classes, position, rest):
    """The position of the likeliest class of each voxel, and the sum of e of all others."""
    n = rest.shape[0]
    for i in range(n):
        position[i] = -1
        rest[i] = _ZERO
    for c in range(num_classes):
        row = e[c, :n]
        for i in range(n):
            first = (row[i] == _ONE) & (position[i] < 0)
            position[i] = c if first else position[i]
            rest[i] += _ZERO if first else row[i]


@_forward
def softmax_forward(
    x, x_sample, x_class, t, t_sample, weights, weighted, num_classes, m, chunk, tile,
    counts, squares, logs, outcomes, power, codes, numbers, map_at, factors, voxel_map,
    by_class, sums, status, first, last,
):  # fmt: skip
    """Add up the chunks first..last-1 under a softmax."""
    error_power = _f(power)
    per_sample = (m + chunk - 1) // chunk
    e, rows = np.empty((num_classes, tile), np.float32), np.empty((8, tile), np.float32)
    labels, places = np.empty(tile, np.int32), np.empty(tile, np.int32)
    reads_logs = logs or outcomes or len(codes) > 0
    for k in range(first, last):
        sample, begin = k // per_sample, (k % per_sample) * chunk
        end = min(begin + chunk, m)
        own = sums[k]
        for a in range(begin, end, tile):
            n = min(tile, end - a)
            start, label, weight = sample * x_sample + a, labels[:n], rows[0, :n]
            at = sample * t_sample + a
            mask = weights[sample * m + a : sample * m + a + n] if weighted else weights
            if _read_labels(t[at : at + n], mask, weighted, num_classes, label, weight):
                status[k] = WRONG_LABEL
            top, total, share, log_total, log_pt = rows[1, :n], rows[2, :n], rows[3, :n], rows[4, :n], rows[5, :n]
            values, rest = rows[6, :n], rows[7, :n]
            _largest(x, start, x_class, num_classes, top)
            _exponentials(x, start, x_class, num_classes, weight, weighted, top, e, total)
            for i in range(n):
                share[i] = weight[i] / total[i]
            own[COUNT] += _total(weight)
            _add_by_class(weight, label, num_classes, own[VOLUME])
            if counts:
                for c in range(num_classes):
                    row, of_p = e[c, :n], _ZERO
                    for i in range(n):
                        of_p += row[i] * share[i]
                    own[OF_P, c] += of_p
                if num_classes <= _FEW:
                    for c in range(num_classes):
                        row, overlap = e[c, :n], _ZERO
                        for i in range(n):
                            overlap += row[i] * share[i] if label[i] == c else _ZERO
                        own[OVERLAP, c] += overlap
                else:
                    for i in range(n):
                        own[OVERLAP, label[i]] += e[label[i], i] * share[i]
            if squares:
                for c in range(num_classes):
                    row, square = e[c, :n], _ZERO
                    for i in range(n):
                        square += row[i] * row[i] * share[i] / total[i]
                    own[OF_SQUARE, c] += square
            if error_power > _ZERO:
                for c in range(num_classes):
                    row, of_error = e[c, :n], _ZERO
                    for i in range(n):
                        rest[i] = row[i] / total[i]
                    raise_all(rest, error_power)
                    for i in range(n):
                        of_error += _ZERO if label[i] == c else rest[i] * weight[i]
                    own[OF_ERROR, c] += of_error
            if not reads_logs:
                continue
            _log_true(x, start, x_class, num_classes, label, weight, top, e, total, log_total, rest, log_pt)
            for j in range(len(codes)):
                losses_of(codes[j], numbers[j], log_pt, values)
                for i in range(n):
                    values[i] *= weight[i]
                if j == map_at:
                    of_voxels = voxel_map[sample * m + a : sample * m + a + n]
                    for i in range(n):
                        of_voxels[i] = values[i] * factors[0, sample, label[i]]
                elif by_class[j]:
                    _add_by_class(values, label, num_classes, own[FORMULAS + j])
                else:
                    own[FORMULAS + j, 0] += _total(values)
            if logs:
                for c in range(num_classes):
                    y, of_log = x[start + c * x_class : start + c * x_class + n], _ZERO
                    for i in range(n):
                        of_log += _ZERO if weight[i] == _ZERO else _less(y[i], top[i], log_total[i]) * weight[i]
                    own[OF_LOG, c] += of_log
            if outcomes:
                _likeliest(e, num_classes, places[:n], rest)
                for i in range(n):
                    if rest[i] < _SMALL:
                        status[k] = max(status[k], OUT_OF_RANGE)
                    values[i] = log_pt[i] * weight[i]
                _add_by_class(values, label, num_classes, own[OF_LOG_TRUE])
                for i in range(n):
                    values[i] = (log(rest[i]) - log_total[i]) * weight[i]
                    share[i] = _ONE / total[i]
                for c in range(num_classes):
                    row, of_rest = e[c, :n], _ZERO
                    for i in range(n):
                        small = _ZERO if places[i] == c else row[i] * share[i]
                        of_other = values[i] if places[i] == c else log1p(-small) * weight[i]
                        of_rest += _ZERO if label[i] == c else of_other
                    own[OF_LOG_REST, c] += of_rest


@_backward
def softmax_backward(
    x, x_sample, x_class, t, t_sample, weights, weighted, num_classes, m, chunk, tile,
    counts, squares, logs, outcomes, power, codes, numbers, map_at, factors, voxel_map,
    grads, out, out_sample, out_class, status, first, last,
):  # fmt: skip
    """Write the gradient of the chunks first..last-1 under a softmax.

    `grads` (rows, b, C) are dL of the rows of the sums.
    """
    error_power = _f(power)
    per_sample = (m + chunk - 1) // chunk
    e, rows = np.empty((num_classes, tile), np.float32), np.empty((10, tile), np.float32)
    d = np.empty((num_classes if outcomes or error_power > _ZERO else 0, tile), np.float32)
    labels, places = np.empty(tile, np.int32), np.empty(tile, np.int32)
    curved = False  # whether a slope depends on log p
    for code in codes:
        curved |= code != CROSS_ENTROPY
    for k in range(first, last):
        sample, begin = k // per_sample, (k % per_sample) * chunk
        end = min(begin + chunk, m)
        base, of_overlap = grads[OF_P, sample], grads[OVERLAP, sample]
        square, of_log = grads[OF_SQUARE, sample], grads[OF_LOG, sample]
        of_true, of_rest = grads[OF_LOG_TRUE, sample], grads[OF_LOG_REST, sample]
        log_base = _ZERO
        if logs:
            for c in range(num_classes):
                log_base += of_log[c]
        for a in range(begin, end, tile):
            n = min(tile, end - a)
            start, label, weight = sample * x_sample + a, labels[:n], rows[0, :n]
            at, to = sample * t_sample + a, sample * out_sample + a
            mask = weights[sample * m + a : sample * m + a + n] if weighted else weights
            _read_labels(t[at : at + n], mask, weighted, num_classes, label, weight)
            top, share, inner, log_pt = rows[1, :n], rows[2, :n], rows[3, :n], rows[4, :n]
            jump, values, others = rows[5, :n], rows[6, :n], rows[7, :n]
            of_formulas, rest = rows[8, :n], rows[9, :n]
            _largest(x, start, x_class, num_classes, top)
            _exponentials(x, start, x_class, num_classes, weight, weighted, top, e, share)
            if curved:
                _log_true(x, start, x_class, num_classes, label, weight, top, e, share, values, others, log_pt)
            elif len(codes):
                _others(num_classes, label, e, others)
            if outcomes:
                _likeliest(e, num_classes, places[:n], rest)
            for i in range(n):
                share[i] = _ONE / share[i]
                inner[i] = log_base
                jump[i], of_formulas[i] = _ZERO, _ZERO
            if counts:
                for c in range(num_classes):
                    row, factor, of_own = e[c, :n], base[c], of_overlap[c]
                    if num_classes <= _FEW:
                        for i in range(n):
                            p = row[i] * share[i]
                            inner[i] += p * factor
                            jump[i] += p * (of_own if label[i] == c else _ZERO)
                    else:
                        for i in range(n):
                            inner[i] += row[i] * share[i] * factor
                if num_classes > _FEW:
                    for i in range(n):
                        jump[i] = e[label[i], i] * share[i] * of_overlap[label[i]]
            if squares:
                for c in range(num_classes):
                    row, factor = e[c, :n], _TWO * square[c]
                    for i in range(n):
                        p = row[i] * share[i]
                        inner[i] += p * p * factor
            for j in range(len(codes)):
                slopes_of(codes[j], numbers[j], log_pt, values)
                if j == map_at:
                    of_voxels = voxel_map[sample * m + a : sample * m + a + n]
                    for i in range(n):
                        of_formulas[i] += values[i] * of_voxels[i] * factors[0, sample, label[i]]
                else:
                    of_class = grads[FORMULAS + j, sample]
                    for i in range(n):
                        of_formulas[i] += values[i] * of_class[label[i]]
            for i in range(n):
                inner[i] += jump[i]
                values[i] = inner[i] + of_formulas[i]
                # at the own class of_formulas (1 - p), whose difference would lose digits
                jump[i] += of_formulas[i] * others[i] * share[i] if len(codes) else _ZERO
            for c in range(num_classes):
                row, of_p, factor, constant = e[c, :n], base[c], _TWO * square[c], of_log[c]
                into = out[to + c * out_class : to + c * out_class + n]
                if num_classes <= _FEW:
                    for i in range(n):
                        own = label[i] == c
                        p = row[i] * share[i]
                        less = inner[i] if own else values[i]
                        into[i] = p * (of_p + factor * p - less) + constant + (jump[i] if own else _ZERO)
                else:
                    for i in range(n):
                        p = row[i] * share[i]
                        into[i] = p * (of_p + factor * p - values[i]) + constant
            if num_classes > _FEW:
                for i in range(n):
                    c = label[i]
                    p = e[c, i] * share[i]
                    value = p * (base[c] + _TWO * square[c] * p - inner[i]) + of_log[c] + jump[i]
                    out[to + c * out_class + i] = value
            if error_power > _ZERO:
                of_error = grads[OF_ERROR, sample]
                _add_errors(e, d, label, share, error_power, of_error, values, num_classes, out, to, out_class)
            if outcomes:
                of_both = of_true, of_rest
                lost = _add_outcomes(
                    e, d, label, places[:n], rest, share, of_both, values, inner, num_classes, out, to, out_class
                )
                status[k] = OUT_OF_RANGE if lost else status[k]
            if weighted:
                for c in range(num_classes):
                    into = out[to + c * out_class : to + c * out_class + n]
                    for i in range(n):
                        into[i] *= weight[i]


@_exact
def _add_errors(e, d, label, share, exponent, of_error, total, num_classes, out, to, out_class):
    """Add the gradient of the sums of p^q off the own class: dL/dp = q p^(q-1)."""
    n = label.shape[0]
    for i in range(n):
        total[i] = _ZERO
    for c in range(num_classes):
        row, slope, factor = e[c, :n], d[c, :n], exponent * of_error[c]
        for i in range(n):
            slope[i] = row[i] * share[i]
        raise_all(slope, exponent)
        for i in range(n):
            slope[i] *= _ZERO if label[i] == c else factor
            total[i] += slope[i]
    for c in range(num_classes):
        row, slope = e[c, :n], d[c, :n]
        into = out[to + c * out_class : to + c * out_class + n]
        for i in range(n):
            into[i] += slope[i] - row[i] * share[i] * total[i]


@_exact
def _add_outcomes(
    e, d, label, position, rest, share, factors, total, of_top, num_classes, out, to, out_class
):  # fmt: skip
    """Add the gradient of log p_t and log(1-p_c); see `softmax._slope_of_outcomes`. Whether a rest has lost digits."""
    n = label.shape[0]
    lost = 0
    for i in range(n):
        lost += rest[i] < _SMALL
        total[i] = _ZERO
        of_top[i] = _ZERO
    for c in range(num_classes):
        row, slope = e[c, :n], d[c, :n]
        at_true, at_rest = factors[0][c], -factors[1][c]
        for i in range(n):
            p = row[i] * share[i]
            is_top, is_true = position[i] == c, label[i] == c
            value = at_true if is_true else at_rest * (p / (_ONE - (_ZERO if is_top else p)))
            slope[i] = _ZERO if is_top else value
            total[i] += slope[i]
            top_value = at_true * rest[i] * share[i] if is_true else at_rest * p
            of_top[i] = top_value if is_top else of_top[i]
    for c in range(num_classes):
        row, slope = e[c, :n], d[c, :n]
        into = out[to + c * out_class : to + c * out_class + n]
        for i in range(n):
            p = row[i] * share[i]
            off = slope[i] - p * total[i] - row[i] / rest[i] * of_top[i]
            into[i] += of_top[i] - p * total[i] if position[i] == c else off
    return lost > 0


@_exact
def _read_scores(x, start, by_class, two, weight, weighted, z):
    """Scores of a channel; of two classes under a softmax their difference, of which a sigmoid is p of class 1."""
    n = z.shape[0]
    y = x[start : start + n]
    if two:
        upper = x[start + by_class : start + by_class + n]
        for i in range(n):
            z[i] = upper[i] - y[i]
    else:
        for i in range(n):
            z[i] = y[i]
    if weighted:
        for i in range(n):
            z[i] = _ZERO if weight[i] == _ZERO else z[i]


@_exact
def _log_outcome(z, e, label, positive, raw, out):
    """log p_t = logsigmoid(+-z), with e = exp(-|z|); `raw`: +-z."""
    for i in range(z.shape[0]):
        of_outcome = z[i] if label[i] == positive else -z[i]
        if raw:
            out[i] = of_outcome
        else:
            out[i] = (of_outcome if of_outcome < _ZERO else _ZERO) - log1p(e[i])


@_forward
def sigmoid_forward(
    x, x_sample, x_class, t, t_sample, weights, weighted, two, raw, num_classes, m, chunk, tile,
    counts, codes, numbers, map_at, factors, voxel_map, by_class, sums, status, first, last,
):  # fmt: skip
    """Add up the chunks first..last-1 under a sigmoid; a formula has two rows, of positive and of negative outcomes."""
    per_sample = (m + chunk - 1) // chunk
    rows, labels = np.empty((6, tile), np.float32), np.empty(tile, np.int32)
    for k in range(first, last):
        sample, begin = k // per_sample, (k % per_sample) * chunk
        end = min(begin + chunk, m)
        own = sums[k]
        for a in range(begin, end, tile):
            n = min(tile, end - a)
            start, label, weight = sample * x_sample + a, labels[:n], rows[0, :n]
            z, e, p, log_pt, values = rows[1, :n], rows[2, :n], rows[3, :n], rows[4, :n], rows[5, :n]
            at = sample * t_sample + a
            mask = weights[sample * m + a : sample * m + a + n] if weighted else weights
            if _read_labels(t[at : at + n], mask, weighted, 2 if two else num_classes, label, weight):
                status[k] = WRONG_LABEL
            for c in range(num_classes):
                positive = 1 if two else c
                _read_scores(x, start + c * x_class, x_class, two, weight, weighted, z)
                if not raw:
                    for i in range(n):
                        e[i] = exp(-abs(z[i]))
                        p[i] = (_ONE if z[i] >= _ZERO else e[i]) / (_ONE + e[i])
                own[COUNT, c] += _total(weight)
                volume = _ZERO
                for i in range(n):
                    volume += weight[i] if label[i] == positive else _ZERO
                own[VOLUME, c] += volume
                if counts:
                    overlap, of_p, square = _ZERO, _ZERO, _ZERO
                    for i in range(n):
                        counted = p[i] * weight[i]
                        of_p += counted
                        overlap += counted if label[i] == positive else _ZERO
                        square += counted * p[i]
                    own[OVERLAP, c] += overlap
                    own[OF_P, c] += of_p
                    own[OF_SQUARE, c] += square
                if len(codes):
                    _log_outcome(z, e, label, positive, raw, log_pt)
                for j in range(len(codes)):
                    losses_of(codes[j], numbers[j], log_pt, values)
                    if j == map_at:
                        place = (sample * num_classes + c) * m + a
                        of_voxels = voxel_map[place : place + n]
                        if_positive, if_negative = factors[0, sample, c], factors[1, sample, c]
                        for i in range(n):
                            factor = if_positive if label[i] == positive else if_negative
                            of_voxels[i] = values[i] * weight[i] * factor
                        continue
                    own[FORMULAS + 2 * j, c] += _total_where(values, weight, label, positive, True)
                    own[FORMULAS + 2 * j + 1, c] += _total_where(values, weight, label, positive, False)


@_backward
def sigmoid_backward(
    x, x_sample, x_class, t, t_sample, weights, weighted, two, raw, num_classes, m, chunk, tile,
    counts, codes, numbers, map_at, factors, voxel_map, grads, out, out_sample, out_class, status, first, last,
):  # fmt: skip
    """Write the gradient of the chunks first..last-1 under a sigmoid; `grads` as of `softmax_backward`."""
    per_sample = (m + chunk - 1) // chunk
    rows, labels = np.empty((6, tile), np.float32), np.empty(tile, np.int32)
    for k in range(first, last):
        sample, begin = k // per_sample, (k % per_sample) * chunk
        end = min(begin + chunk, m)
        for a in range(begin, end, tile):
            n = min(tile, end - a)
            start, to = sample * x_sample + a, sample * out_sample + a
            label, weight, z, e = labels[:n], rows[0, :n], rows[1, :n], rows[2, :n]
            d, log_pt, values = rows[3, :n], rows[4, :n], rows[5, :n]
            at = sample * t_sample + a
            mask = weights[sample * m + a : sample * m + a + n] if weighted else weights
            _read_labels(t[at : at + n], mask, weighted, 2 if two else num_classes, label, weight)
            for c in range(num_classes):
                positive = 1 if two else c
                _read_scores(x, start + c * x_class, x_class, two, weight, weighted, z)
                for i in range(n):
                    e[i] = _ZERO if raw else exp(-abs(z[i]))
                    d[i] = _ZERO
                if counts:
                    base, overlap = grads[OF_P, sample, c], grads[OVERLAP, sample, c]
                    square = _TWO * grads[OF_SQUARE, sample, c]
                    for i in range(n):
                        share = _ONE / (_ONE + e[i])
                        p = share if z[i] >= _ZERO else e[i] * share
                        of_class = overlap if label[i] == positive else _ZERO
                        d[i] = e[i] * share * share * (base + of_class + square * p)  # p (1-p) = e / (1+e)^2
                if len(codes):
                    _log_outcome(z, e, label, positive, raw, log_pt)
                for j in range(len(codes)):
                    slopes_of(codes[j], numbers[j], log_pt, values)
                    of_positive = grads[FORMULAS + 2 * j, sample, c]
                    of_negative = -grads[FORMULAS + 2 * j + 1, sample, c]
                    if j == map_at:
                        place = (sample * num_classes + c) * m + a
                        of_voxels = voxel_map[place : place + n]
                        of_positive, of_negative = factors[0, sample, c], -factors[1, sample, c]
                        for i in range(n):
                            values[i] *= of_voxels[i]
                    if raw:
                        for i in range(n):
                            d[i] += values[i] * (of_positive if label[i] == positive else of_negative)
                        continue
                    for i in range(n):
                        right = (z[i] >= _ZERO) == (label[i] == positive)
                        error = (e[i] if right else _ONE) / (_ONE + e[i])  # 1 - p_t
                        d[i] += values[i] * error * (of_positive if label[i] == positive else of_negative)
                into = out[to + c * out_class : to + c * out_class + n]
                if two:
                    upper = out[to + out_class : to + out_class + n]
                    for i in range(n):
                        upper[i] = d[i] * weight[i]
                        into[i] = -upper[i]
                else:
                    for i in range(n):
                        into[i] = d[i] * weight[i]


@_exact
def _lead(x, start, by_class, num_classes, label, weight, own, best, rival):
    """The score of the own class of each voxel, the largest other, and the class of that; NaN is larger than all."""
    n = label.shape[0]
    for i in range(n):
        best[i] = -np.inf
        rival[i] = -1
    for c in range(num_classes):
        y = x[start + c * by_class : start + c * by_class + n]
        for i in range(n):
            value = _ZERO if weight[i] == _ZERO else y[i]
            is_own = label[i] == c
            own[i] = value if is_own else own[i]
            above = (not is_own) & ((value > best[i]) | (value != value) | (rival[i] < 0))
            best[i] = value if above else best[i]
            rival[i] = c if above else rival[i]


@_forward
def lead_forward(
    x, x_sample, x_class, t, t_sample, weights, weighted, num_classes, m, chunk, tile,
    codes, numbers, map_at, factors, voxel_map, by_class, sums, status, first, last,
):  # fmt: skip
    """Add up the chunks first..last-1 of losses of the own class's lead over the next."""
    per_sample = (m + chunk - 1) // chunk
    rows, labels, rivals = np.empty((4, tile), np.float32), np.empty(tile, np.int32), np.empty(tile, np.int32)
    for k in range(first, last):
        sample, begin = k // per_sample, (k % per_sample) * chunk
        end = min(begin + chunk, m)
        for a in range(begin, end, tile):
            n = min(tile, end - a)
            start, at, label, weight = sample * x_sample + a, sample * t_sample + a, labels[:n], rows[0, :n]
            own, best, values = rows[1, :n], rows[2, :n], rows[3, :n]
            mask = weights[sample * m + a : sample * m + a + n] if weighted else weights
            if _read_labels(t[at : at + n], mask, weighted, num_classes, label, weight):
                status[k] = WRONG_LABEL
            sums[k, COUNT] += _total(weight)
            _add_by_class(weight, label, num_classes, sums[k, VOLUME])
            _lead(x, start, x_class, num_classes, label, weight, own, best, rivals[:n])
            for i in range(n):
                own[i] -= best[i]
            for j in range(len(codes)):
                losses_of(codes[j], numbers[j], own, values)
                for i in range(n):
                    values[i] *= weight[i]
                _add_by_class(values, label, num_classes, sums[k, FORMULAS + j])


@_backward
def lead_backward(
    x, x_sample, x_class, t, t_sample, weights, weighted, num_classes, m, chunk, tile,
    codes, numbers, map_at, factors, voxel_map, grads, out, out_sample, out_class, status, first, last,
):  # fmt: skip
    """Write the gradient of the chunks first..last-1 of such losses: that of the own class, and its negative."""
    per_sample = (m + chunk - 1) // chunk
    rows, labels, rivals = np.empty((5, tile), np.float32), np.empty(tile, np.int32), np.empty(tile, np.int32)
    for k in range(first, last):
        sample, begin = k // per_sample, (k % per_sample) * chunk
        end = min(begin + chunk, m)
        for a in range(begin, end, tile):
            n = min(tile, end - a)
            start, at, to = sample * x_sample + a, sample * t_sample + a, sample * out_sample + a
            label, rival, weight = labels[:n], rivals[:n], rows[0, :n]
            own, best, values, d = rows[1, :n], rows[2, :n], rows[3, :n], rows[4, :n]
            mask = weights[sample * m + a : sample * m + a + n] if weighted else weights
            _read_labels(t[at : at + n], mask, weighted, num_classes, label, weight)
            _lead(x, start, x_class, num_classes, label, weight, own, best, rival)
            for i in range(n):
                own[i] -= best[i]
                d[i] = _ZERO
            for j in range(len(codes)):
                slopes_of(codes[j], numbers[j], own, values)
                of_class = grads[FORMULAS + j, sample]
                for i in range(n):
                    d[i] += values[i] * weight[i] * of_class[label[i]]
            for c in range(num_classes):
                into = out[to + c * out_class : to + c * out_class + n]
                for i in range(n):
                    into[i] = (d[i] if label[i] == c else _ZERO) - (d[i] if rival[i] == c else _ZERO)
