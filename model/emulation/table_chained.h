// Lookups of folded tables in 256-bit registers, 32 lanes at once (AVX2): for few lanes, which table_avx2.h makes little
// of. One look-up knows 16 entries, so a row of the table is a chain of them: links[e] = entry[e] ^ entry[e - 16]. From
// link to link the index falls by 16, and from where it is below zero on nothing is found; all that was found is the
// entry.

#pragma once

#include "plan.h"

#ifdef X86
namespace {

constexpr int64_t ENTRIES = 128;  // of a folded table's row

// sums += 2^shift times 32 lanes of `all` (bytes summed as words, the odd ones in the high half) and `odd`
AVX2 inline void flush256(__m256i all, __m256i odd, int shift, int32_t *sums) {
    const __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8)), zero = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    // q[t] holds lanes 16 i + 4 t ... + 3 in its 128 bits i
    const __m256i q[4] = {_mm256_unpacklo_epi16(low, zero), _mm256_unpackhi_epi16(low, zero),
                          _mm256_unpacklo_epi16(high, zero), _mm256_unpackhi_epi16(high, zero)};
    const __m256i in_order[4] = {
        _mm256_permute2x128_si256(q[0], q[1], 0x20), _mm256_permute2x128_si256(q[2], q[3], 0x20),
        _mm256_permute2x128_si256(q[0], q[1], 0x31), _mm256_permute2x128_si256(q[2], q[3], 0x31)};
    UNROLLED for (int i = 0; i < 4; i++) {
        auto *place = reinterpret_cast<__m256i *>(sums + 8 * i);
        _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), _mm256_slli_epi32(in_order[i], shift)));
    }
}

// One plane of 32 lanes of `ROWS` rows, whose indices they share; a byte of a picks the row `size` bytes further on
template <int ROWS>
AVX2 inline void lanes256(const uint8_t *links, int64_t size, int shift, const uint8_t *a, int64_t terms,
                          const uint8_t *b, int64_t b_term, int32_t *sums, int64_t width) {
    const __m256i step = _mm256_set1_epi8(16), zero = _mm256_setzero_si256();
    __m256i all[ROWS], odd[ROWS];
    UNROLLED for (int m = 0; m < ROWS; m++) all[m] = odd[m] = zero;
    for (int64_t k = 0; k < terms; k++, b += b_term) {
        const __m256i byte = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b));
        const uint8_t *rows[ROWS];
        __m256i picked[ROWS];
        UNROLLED for (int m = 0; m < ROWS; m++) rows[m] = links + a[m * BLOCK + k] * size;
        __m256i index = _mm256_and_si256(byte, _mm256_set1_epi8(127));
        UNROLLED for (int e = 0; e < ENTRIES; e += 16) {
            UNROLLED for (int m = 0; m < ROWS; m++) {
                const __m128i link = _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows[m] + e));
                const __m256i found = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(link), index);
                picked[m] = e ? _mm256_xor_si256(picked[m], found) : found;
            }
            index = _mm256_sub_epi8(index, step);
        }
        UNROLLED for (int m = 0; m < ROWS; m++) {
            picked[m] = _mm256_xor_si256(picked[m], _mm256_cmpgt_epi8(zero, byte));  // the sign is a complement
            all[m] = _mm256_add_epi16(all[m], picked[m]);
            odd[m] = _mm256_add_epi16(odd[m], _mm256_srli_epi16(picked[m], 8));
        }
    }
    UNROLLED for (int m = 0; m < ROWS; m++) flush256(all[m], odd[m], shift, sums + m * width);
}

// For rows `BLOCK` apart, as micro-kernels are given them
template <int PLANES>
AVX2 void chained256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                     int64_t lanes, int32_t *sums, int64_t width) {
    for (int64_t n = 0; n < lanes; n += 32)
        UNROLLED for (int i = 0; i < PLANES; i++) {
            const uint8_t *links = plan.links + i * ENTRIES;
            int64_t m = 0;
            for (; m + 1 < rows; m += 2)
                lanes256<2>(links, PLANES * ENTRIES, 8 * i, a + m * BLOCK, terms, b + n, b_term, sums + m * width + n,
                            width);
            if (m < rows)
                lanes256<1>(links, PLANES * ENTRIES, 8 * i, a + m * BLOCK, terms, b + n, b_term, sums + m * width + n,
                            width);
        }
}

}  // namespace
#endif
