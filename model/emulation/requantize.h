// Codes of accumulators: docs/numerics.md, Requantisation.

#pragma once

#include <cstdlib>

#include "plan.h"

namespace {

using Requantize = void (*)(const Requantizer &unit, const int32_t *sums, int16_t *out, int64_t count);

// The nearest number of five significant bits, ties away from zero
int16_t significant(int16_t code) {
    const uint32_t magnitude = uint32_t(std::abs(int32_t(code)));
    if (magnitude < 32) return code;
    const uint32_t cut = (1u << (27 - __builtin_clz(magnitude))) - 1;  // the bits below the fifth
    const int32_t rounded = int32_t((magnitude + (cut + 1) / 2) & ~cut);
    return int16_t(code < 0 ? -rounded : rounded);
}

void requantize_portable(const Requantizer &unit, const int32_t *sums, int16_t *out, int64_t count) {
    const int64_t half = int64_t(1) << (unit.shift - 1);
    for (int64_t i = 0; i < count; i++) {
        const int64_t code = ((sums[i] * unit.multiplier + half) >> unit.shift) + unit.zero_point;
        const int16_t clamped = int16_t(std::min(unit.high, std::max(unit.low, code)));
        out[i] = unit.floats ? significant(clamped) : clamped;
    }
}

#ifdef X86
// From `low` up; what 16 bits then saturate is far outside of the codes
AVX2 __m256i significant256(__m256i codes) {
    const __m256i magnitude = _mm256_abs_epi16(codes), one = _mm256_set1_epi16(1);
    __m256i below = _mm256_or_si256(magnitude, _mm256_srli_epi16(magnitude, 1));  // all ones from the highest downwards
    below = _mm256_or_si256(below, _mm256_srli_epi16(below, 2));
    below = _mm256_or_si256(below, _mm256_srli_epi16(below, 4));
    below = _mm256_or_si256(below, _mm256_srli_epi16(below, 8));
    const __m256i cut = _mm256_srli_epi16(below, 5), half = _mm256_srli_epi16(_mm256_add_epi16(cut, one), 1);
    return _mm256_sign_epi16(_mm256_andnot_si256(cut, _mm256_add_epi16(magnitude, half)), codes);
}

AVX2 void requantize256(const Requantizer &unit, const int32_t *sums, int16_t *out, int64_t count) {
    if (unit.shift < 16) return requantize_portable(unit, sums, out, count);  // what is shifted may need over 32 bits
    const int64_t one = int64_t(1) << unit.shift, offset = (unit.zero_point - unit.low) * one + one / 2;
    const __m256i times = _mm256_set1_epi32(int32_t(unit.multiplier)), more = _mm256_set1_epi64x(offset);
    const __m128i up = _mm_cvtsi64_si128(std::max<int64_t>(0, 32 - unit.shift));  // to the upper 32 bits
    const __m128i down = _mm_cvtsi64_si128(std::max<int64_t>(0, unit.shift - 32));  // and on in them
    const __m256i low = _mm256_set1_epi16(int16_t(unit.low)), most = _mm256_set1_epi16(int16_t(unit.high - unit.low));
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m256i eight[2];
        UNROLLED for (int j = 0; j < 2; j++) {
            const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(sums + i + 8 * j));
            __m256i even = _mm256_mul_epi32(sum, times), odd = _mm256_mul_epi32(_mm256_srli_epi64(sum, 32), times);
            even = _mm256_sll_epi64(_mm256_add_epi64(even, more), up);
            odd = _mm256_sll_epi64(_mm256_add_epi64(odd, more), up);
            eight[j] = _mm256_sra_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa), down);
        }
        __m256i codes = _mm256_permute4x64_epi64(_mm256_packs_epi32(eight[0], eight[1]), 0xd8);
        codes = _mm256_min_epi16(_mm256_max_epi16(codes, _mm256_setzero_si256()), most);
        codes = _mm256_add_epi16(codes, low);
        if (unit.floats) codes = significant256(codes);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + i), codes);
    }
    requantize_portable(unit, sums + i, out + i, count - i);
}
#endif

Requantize choose_requantize(int32_t level) {
#ifdef X86
    if (level >= 1) return requantize256;
#endif
    return requantize_portable;
}

}  // namespace
