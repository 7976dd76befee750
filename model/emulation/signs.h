// How often the signs of two operands differ, term by term: what a folded table of magnitudes leaves over.

#pragma once

#include "plan.h"

namespace {

// sums[n] += differ times the terms where the signs a[eights] differ from those of lane n, b[eights][b_eight]
using Signs = void (*)(const uint8_t *a, const uint8_t *b, int64_t b_eight, int64_t eights, int64_t lanes,
                       int32_t differ, int32_t *sums);

void signs_portable(const uint8_t *a, const uint8_t *b, int64_t b_eight, int64_t eights, int64_t lanes, int32_t differ,
                    int32_t *sums) {
    for (int64_t i = 0; i < eights; i++)
        for (int64_t n = 0; n < lanes; n++) {
            const uint32_t count = uint32_t(__builtin_popcount(a[i] ^ b[i * b_eight + n]));
            sums[n] = int32_t(uint32_t(sums[n]) + count * uint32_t(differ));
        }
}

#ifdef X86
// b and sums have room for the next multiple of 32 lanes
AVX2 void signs256(const uint8_t *a, const uint8_t *b, int64_t b_eight, int64_t eights, int64_t lanes, int32_t differ,
                   int32_t *sums) {
    constexpr int64_t MOST = 255 / 8;  // eights whose counts fit a byte
    const __m256i bits = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i four = _mm256_set1_epi8(15), times = _mm256_set1_epi32(differ);
    for (int64_t n = 0; n < lanes; n += 32)
        for (int64_t i = 0; i < eights;) {
            __m256i count = _mm256_setzero_si256();
            for (const int64_t end = std::min(eights, i + MOST); i < end; i++) {
                const __m256i of = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + i * b_eight + n));
                const __m256i other = _mm256_xor_si256(of, _mm256_set1_epi8(char(a[i])));
                const __m256i above = _mm256_and_si256(_mm256_srli_epi16(other, 4), four);
                count = _mm256_add_epi8(count, _mm256_shuffle_epi8(bits, _mm256_and_si256(other, four)));
                count = _mm256_add_epi8(count, _mm256_shuffle_epi8(bits, above));
            }
            uint8_t counts[32];
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(counts), count);
            for (int64_t j = 0; j < 32; j += 8) {
                const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(counts + j));
                const __m256i more = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(eight), times);
                auto *place = reinterpret_cast<__m256i *>(sums + n + j);
                _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), more));
            }
        }
}
#endif

Signs choose_signs(int32_t level) {
#ifdef X86
    if (level >= 1) return signs256;
#endif
    return signs_portable;
}

}  // namespace
