// What sums begin with: what belongs to one operand alone, and how often the signs of the two differ, term by term,
// which a folded table of magnitudes leaves over.

#pragma once

#include "plan.h"

namespace {

// sums[n] = init[n] + base + differ times the terms where the signs a[eights] differ from those of lane n,
// b[eights][b_eight]
using Begin = void (*)(const int32_t *init, uint32_t base, const uint8_t *a, const uint8_t *b, int64_t b_eight,
                       int64_t eights, int32_t differ, int32_t *sums, int64_t lanes);

void begin_portable(const int32_t *init, uint32_t base, const uint8_t *a, const uint8_t *b, int64_t b_eight,
                    int64_t eights, int32_t differ, int32_t *sums, int64_t lanes) {
    for (int64_t n = 0; n < lanes; n++) {
        uint32_t count = 0;
        for (int64_t i = 0; i < eights; i++) count += uint32_t(__builtin_popcount(a[i] ^ b[i * b_eight + n]));
        sums[n] = int32_t(uint32_t(init[n]) + base + count * uint32_t(differ));
    }
}

#ifdef X86
// b has room for the next multiple of 32 lanes
AVX2 void begin256(const int32_t *init, uint32_t base, const uint8_t *a, const uint8_t *b, int64_t b_eight,
                   int64_t eights, int32_t differ, int32_t *sums, int64_t lanes) {
    if (!eights) {
        for (int64_t n = 0; n < lanes; n++) sums[n] = int32_t(uint32_t(init[n]) + base);
        return;
    }
    constexpr int64_t MOST = 255 / 8;  // eights whose counts fit a byte
    const __m256i bits = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i four = _mm256_set1_epi8(15);
    const __m256i times = _mm256_set1_epi32(differ), bases = _mm256_set1_epi32(int32_t(base));
    for (int64_t n = 0; n < lanes; n += 32) {
        __m256i counts[4] = {};
        for (int64_t i = 0; i < eights;) {
            __m256i count = _mm256_setzero_si256();
            for (const int64_t end = std::min(eights, i + MOST); i < end; i++) {
                const __m256i of = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + i * b_eight + n));
                const __m256i other = _mm256_xor_si256(of, _mm256_set1_epi8(char(a[i])));
                const __m256i above = _mm256_and_si256(_mm256_srli_epi16(other, 4), four);
                count = _mm256_add_epi8(count, _mm256_shuffle_epi8(bits, _mm256_and_si256(other, four)));
                count = _mm256_add_epi8(count, _mm256_shuffle_epi8(bits, above));
            }
            const __m128i half[2] = {_mm256_castsi256_si128(count), _mm256_extracti128_si256(count, 1)};
            UNROLLED for (int j = 0; j < 4; j++) {
                const __m128i eight = j % 2 ? _mm_srli_si128(half[j / 2], 8) : half[j / 2];
                counts[j] = _mm256_add_epi32(counts[j], _mm256_cvtepu8_epi32(eight));
            }
        }
        UNROLLED for (int j = 0; j < 4; j++) {
            const __m256i more = _mm256_add_epi32(_mm256_mullo_epi32(counts[j], times), bases);
            const int64_t m = n + 8 * j;
            if (m + 8 <= lanes) {
                const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(init + m));
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(sums + m), _mm256_add_epi32(first, more));
            } else {
                alignas(32) uint32_t eight[8];
                _mm256_store_si256(reinterpret_cast<__m256i *>(eight), more);
                for (int64_t i = m; i < lanes; i++) sums[i] = int32_t(uint32_t(init[i]) + eight[i - m]);
            }
        }
    }
}
#endif

Begin choose_begin(int32_t level) {
#ifdef X86
    if (level >= 1) return begin256;
#endif
    return begin_portable;
}

}  // namespace
