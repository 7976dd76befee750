// Lookups of eight rows at once (AVX2): what eight bytes of operand a pick from the table is laid out side by side, so
// that each byte of operand b picks eight values with one load.

#pragma once

#include "plan.h"

#ifdef X86
namespace {

constexpr int64_t PACKED = 8;

// to[e][r] = rows[r][e], for eight e from `entry` on
AVX2 inline void transpose256(const int32_t *const (&rows)[PACKED], int64_t entry, int32_t *to) {
    __m256 half[8];  // rows 0 ... 3 with rows 4 ... 7 behind them: first and last four entries
    UNROLLED for (int i = 0; i < 8; i++) {
        const auto *low = reinterpret_cast<const float *>(rows[i % 4] + entry + i / 4 * 4);
        const auto *high = reinterpret_cast<const float *>(rows[i % 4 + 4] + entry + i / 4 * 4);
        half[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    }
    UNROLLED for (int i = 0; i < 8; i += 4) {
        const __m256 a = _mm256_unpacklo_ps(half[i], half[i + 1]), b = _mm256_unpackhi_ps(half[i], half[i + 1]);
        const __m256 c = _mm256_unpacklo_ps(half[i + 2], half[i + 3]), d = _mm256_unpackhi_ps(half[i + 2], half[i + 3]);
        const __m256 entries[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee),
                                   _mm256_shuffle_ps(b, d, 0x44), _mm256_shuffle_ps(b, d, 0xee)};
        UNROLLED for (int e = 0; e < 4; e++)
            _mm256_storeu_ps(reinterpret_cast<float *>(to + PACKED * (i + e)), entries[e]);
    }
}

// A micro-kernel of at most eight rows
AVX2 void packed256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                    int64_t lanes, int32_t *sums, int64_t width) {
    alignas(64) int32_t picked[256 * PACKED], packed[LANES * PACKED];
    std::memset(packed, 0, sizeof(int32_t) * size_t(lanes * PACKED));
    for (int64_t k = 0; k < terms; k++) {
        const int32_t *of[PACKED];
        for (int64_t m = 0; m < PACKED; m++) of[m] = plan.values + 256 * a[std::min(m, rows - 1) * BLOCK + k];
        for (int64_t entry = 0; entry < 256; entry += 8) transpose256(of, entry, picked + PACKED * entry);
        for (int64_t n = 0; n < lanes; n++) {
            auto *sum = reinterpret_cast<__m256i *>(packed + PACKED * n);
            const auto *value = reinterpret_cast<const __m256i *>(picked + PACKED * b[k * b_term + n]);
            _mm256_store_si256(sum, _mm256_add_epi32(_mm256_load_si256(sum), _mm256_load_si256(value)));
        }
    }
    for (int64_t m = 0; m < rows; m++)
        for (int64_t n = 0; n < lanes; n++)
            sums[m * width + n] = int32_t(uint32_t(sums[m * width + n]) + uint32_t(packed[PACKED * n + m]));
}

}  // namespace
#endif
