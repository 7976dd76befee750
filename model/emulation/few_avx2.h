// Lookups row by row (AVX2), where few terms are active: the entries of a row are shuffled in registers, sixteen at once.

#pragma once

#include "active.h"
#include "table_avx2.h"

#ifdef X86
namespace {

// sums += 32 lanes of `all` (bytes summed as words, the odd ones in the high half) and `odd`, plane by plane
template <int PLANES>
AVX2 inline void flush_few256(const __m256i (&all)[PLANES], const __m256i (&odd)[PLANES], int32_t *sums) {
    __m256i low[2] = {}, high[2] = {};  // words: of each half's sixteen lanes the first eight and the last
    UNROLLED for (int j = 0; j < PLANES; j++) {
        const __m256i even = _mm256_sub_epi16(all[j], _mm256_slli_epi16(odd[j], 8));
        low[j] = _mm256_unpacklo_epi16(even, odd[j]);
        high[j] = _mm256_unpackhi_epi16(even, odd[j]);
    }
    __m256i eight[2];
    whole256(low[0], low[1], eight);
    accumulate256(eight[0], sums);
    accumulate256(eight[1], sums + 16);
    whole256(high[0], high[1], eight);
    accumulate256(eight[0], sums + 8);
    accumulate256(eight[1], sums + 24);
}

// Of one row and `WIDE` times 32 lanes: what the terms listed have beyond an idle term's value, which is `idle`, or
// `beyond` more where b is negative. Of what 32 bytes each pick, sixteen entries are shuffled at once.
template <int PLANES, bool FOLDED, int WIDE>
AVX2 inline void few_lanes256(const uint8_t *table, const uint8_t *a, const uint16_t *list, int64_t count,
                              const uint8_t *b, int64_t b_term, const uint8_t *shuffles, int32_t idle, int32_t beyond,
                              int32_t *sums) {
    constexpr int64_t SOME = FOLDED ? 128 : 256;  // entries
    const __m256i sixteen = _mm256_set1_epi8(16), up = _mm256_set1_epi8(112), zero = _mm256_setzero_si256();
    __m256i all[WIDE][PLANES] = {}, odd[WIDE][PLANES] = {}, negative[WIDE] = {};
    for (int64_t i = 0; i < count; i++) {
        const int64_t k = list[i];
        const uint8_t *row = table + a[k] * (PLANES * SOME);
        const auto *picks = reinterpret_cast<const __m256i *>(b + k * b_term);
        __m256i picked[WIDE][PLANES] = {}, place[WIDE];
        UNROLLED for (int v = 0; v < WIDE; v++) {
            place[v] = _mm256_loadu_si256(picks + v);
            if constexpr (FOLDED) place[v] = _mm256_and_si256(place[v], _mm256_set1_epi8(127));
        }
        for (int64_t e = 0; e < shuffles[k]; e++) {
            __m256i entries[PLANES];
            UNROLLED for (int j = 0; j < PLANES; j++)
                entries[j] = _mm256_broadcastsi128_si256(
                    _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + j * SOME + 16 * e)));
            UNROLLED for (int v = 0; v < WIDE; v++) {
                const __m256i of = _mm256_adds_epu8(place[v], up);  // from 16 on the top bit is set: a zero is picked
                UNROLLED for (int j = 0; j < PLANES; j++)
                    picked[v][j] = _mm256_or_si256(picked[v][j], _mm256_shuffle_epi8(entries[j], of));
                place[v] = _mm256_sub_epi8(place[v], sixteen);
            }
        }
        UNROLLED for (int v = 0; v < WIDE; v++) {
            const __m256i sign = FOLDED ? _mm256_cmpgt_epi8(zero, _mm256_loadu_si256(picks + v)) : zero;
            if constexpr (FOLDED) negative[v] = _mm256_sub_epi8(negative[v], sign);
            UNROLLED for (int j = 0; j < PLANES; j++) {
                const __m256i bytes = _mm256_xor_si256(picked[v][j], sign);
                all[v][j] = _mm256_add_epi16(all[v][j], bytes);
                odd[v][j] = _mm256_add_epi16(odd[v][j], _mm256_srli_epi16(bytes, 8));
            }
        }
    }
    UNROLLED for (int v = 0; v < WIDE; v++) {
        flush_few256<PLANES>(all[v], odd[v], sums + 32 * v);
        if constexpr (!FOLDED) continue;  // an idle term's value is 0
        alignas(32) uint8_t counts[32];
        _mm256_store_si256(reinterpret_cast<__m256i *>(counts), negative[v]);
        for (int n = 0; n < 32; n++) sums[32 * v + n] -= int32_t(count) * idle + counts[n] * beyond;
    }
}

// A micro-kernel of at most `DEPTH` terms of which few are active, row by row. Trained weights are mostly small: entries
// beyond the largest that is picked are left out.
template <int PLANES, bool FOLDED>
AVX2 void few256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                 int64_t lanes, int32_t *sums, int64_t width) {
    const int32_t idle = plan.values[256 * plan.idle], beyond = plan.values[256 * plan.idle + 128] - idle;
    uint16_t list[DEPTH + 32];
    uint8_t shuffles[DEPTH];
    for (int64_t k = 0; k < terms; k++)
        shuffles[k] = uint8_t((33 - __builtin_clz(eights<FOLDED>(b + k * b_term, lanes))) / 2);
    for (; rows > 0; rows--, a += DEPTH, sums += width) {
        const int64_t active = active_portable(a, terms, uint8_t(plan.idle), list);
        for (int64_t k = 0; k < active; k += BLOCK) {
            const int64_t count = std::min(BLOCK, active - k);
            int64_t n = 0;
            for (; n + VECTOR < lanes; n += 2 * VECTOR)
                few_lanes256<PLANES, FOLDED, 4>(plan.planes, a, list + k, count, b + n, b_term, shuffles, idle, beyond,
                                                sums + n);
            if (n < lanes)
                few_lanes256<PLANES, FOLDED, 2>(plan.planes, a, list + k, count, b + n, b_term, shuffles, idle, beyond,
                                                sums + n);
        }
    }
}

}  // namespace
#endif
