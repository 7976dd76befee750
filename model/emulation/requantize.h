// Codes of accumulators: docs/numerics.md, Requantisation.

#pragma once

#include "plan.h"

namespace {

using Requantize = void (*)(const Requantizer &unit, const int32_t *sums, int16_t *out, int64_t count);

void requantize_portable(const Requantizer &unit, const int32_t *sums, int16_t *out, int64_t count) {
    const int64_t half = int64_t(1) << (unit.shift - 1);
    for (int64_t i = 0; i < count; i++) {
        const int64_t code = ((sums[i] * unit.multiplier + half) >> unit.shift) + unit.zero_point;
        out[i] = int16_t(std::min(unit.high, std::max(unit.low, code)));
    }
}

#ifdef X86
// In double precision, which is exact here: a sum of 32 bits times a multiplier of 16 has 48, and a shift leaves them
AVX2 void requantize256(const Requantizer &unit, const int32_t *sums, int16_t *out, int64_t count) {
    const __m256d times = _mm256_set1_pd(double(unit.multiplier) / double(int64_t(1) << unit.shift));
    const __m256d half = _mm256_set1_pd(0.5), zero = _mm256_set1_pd(double(unit.zero_point));
    const __m256d low = _mm256_set1_pd(double(unit.low)), high = _mm256_set1_pd(double(unit.high));
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m128i codes[2];
        UNROLLED for (int j = 0; j < 2; j++) {
            const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i *>(sums + i + 4 * j));
            const __m256d scaled = _mm256_mul_pd(_mm256_cvtepi32_pd(four), times);
            const __m256d code = _mm256_add_pd(_mm256_floor_pd(_mm256_add_pd(scaled, half)), zero);
            codes[j] = _mm256_cvtpd_epi32(_mm256_min_pd(high, _mm256_max_pd(low, code)));
        }
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i), _mm_packs_epi32(codes[0], codes[1]));
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
