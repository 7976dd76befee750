// What capsules need besides sums of products: docs/numerics.md, Squash and Softmax.

#pragma once

#include <cstring>
#include <vector>

#include "helpers.h"

namespace {

constexpr int64_t TOGETHER = 64;  // input capsules

}  // namespace

extern "C" {

// Codes of `count` capsules of `dim` elements, squashed: docs/numerics.md, Squash
void redcane_squash(const int16_t *codes, int16_t *out, int64_t count, int64_t dim, const uint16_t *table,
                    int64_t shift, int64_t zero_point, int64_t low, int64_t high, int32_t threads) {
    const int32_t half = 1 << (shift - 1);
    parallel(threads, count, std::max<int64_t>(1, (1 << 16) / dim), [=](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int16_t *q = codes + i * dim;
            uint32_t n = 0;
            for (int64_t d = 0; d < dim; d++) n += uint32_t(q[d] * q[d]);
            const int32_t exponent = n < 16 ? 0 : 31 - __builtin_clz(n);
            const int32_t gain = table[n < 16 ? n : uint32_t(exponent - 3) * 16 + (n >> (exponent - 4) & 15)];
            for (int64_t d = 0; d < dim; d++) {
                const int64_t code = ((q[d] * gain + half) >> shift) + zero_point;
                out[i * dim + d] = int16_t(std::min(high, std::max(low, code)));
            }
        }
    });
}

// Coupling coefficients of `count` images' logits [classes][inputs]; the code `one` stands for 1
void redcane_softmax(const int16_t *logits, int16_t *out, int64_t count, int64_t classes, int64_t inputs,
                     const uint16_t *table, int64_t one, int32_t threads) {
    const int64_t parts = (inputs + TOGETHER - 1) / TOGETHER;
    parallel(threads, count * parts, std::max<int64_t>(1, 256 / classes), [=](int64_t first, int64_t last) {
        std::vector<uint32_t> powers(size_t(classes * TOGETHER));
        for (int64_t part = first; part < last; part++) {
            const int64_t i0 = part % parts * TOGETHER, some = std::min(TOGETHER, inputs - i0);
            const int64_t at = part / parts * classes * inputs + i0;
            int16_t most[TOGETHER];
            uint32_t share[TOGETHER] = {};
            std::copy(logits + at, logits + at + some, most);
            for (int64_t j = 1; j < classes; j++)
                for (int64_t i = 0; i < some; i++) most[i] = std::max(most[i], logits[at + j * inputs + i]);
            for (int64_t j = 0; j < classes; j++)
                for (int64_t i = 0; i < some; i++) {
                    const uint32_t power = table[most[i] - logits[at + j * inputs + i]];
                    powers[size_t(j * TOGETHER + i)] = power;
                    share[i] += power;
                }
            for (int64_t i = 0; i < some; i++) share[i] = uint32_t(one << 16) / share[i];
            for (int64_t j = 0; j < classes; j++)
                for (int64_t i = 0; i < some; i++)
                    out[at + j * inputs + i] =
                        int16_t((powers[size_t(j * TOGETHER + i)] * share[i] + (1u << 15)) >> 16);
        }
    });
}

// Bytes of votes [count][inputs][classes][dim] as operand b of the routing's sums, to each class its own:
// [count][classes][inputs][dim] or, turned over, [count][classes][dim][inputs]
void redcane_votes(const uint8_t *bytes, uint8_t *out, int64_t count, int64_t inputs, int64_t classes, int64_t dim,
                   int32_t turned, int32_t threads) {
    const int64_t parts = (inputs + TOGETHER - 1) / TOGETHER, step = classes * dim;
    parallel(threads, count * classes * parts, std::max<int64_t>(1, 1024 / dim), [=](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; part++) {
            const int64_t group = part / parts, i0 = part % parts * TOGETHER, some = std::min(TOGETHER, inputs - i0);
            const uint8_t *from = bytes + (group / classes * inputs + i0) * step + group % classes * dim;
            if (!turned)
                for (int64_t i = 0; i < some; i++)
                    std::memcpy(out + (group * inputs + i0 + i) * dim, from + i * step, size_t(dim));
            else
                for (int64_t d = 0; d < dim; d++) {
                    uint8_t *to = out + (group * dim + d) * inputs + i0;
                    for (int64_t i = 0; i < some; i++) to[i] = from[i * step + d];
                }
        }
    });
}
}
