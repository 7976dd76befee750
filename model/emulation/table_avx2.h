// Lookups of sixteen bytes of one operand at once (AVX2): what they pick from the table is laid out side by side, so
// that each byte of the other operand picks sixteen values with one load. Side by side lie rows or, where lanes are few,
// lanes: laying out pays off where many bytes pick. Values are words, summed modulo 2^16; what a sum has beyond that
// their high bytes tell, which are summed apart.

#pragma once

#include "active.h"
#include "plan.h"

#ifdef X86
namespace {

constexpr int64_t SIDE = 16;      // side by side
constexpr int64_t PICKS = 256;    // sums that each of them has at most
constexpr int64_t ENTRIES = 256;  // of a row of the table
constexpr int TERMS = 2;          // looked up between a load of the sums and their store

// The words of either half, 8 x 8: v[i][j] becomes v[j][i]
AVX2 inline void transpose256(__m256i (&v)[8]) {
    __m256i pairs[8], fours[8];
    UNROLLED for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi16(v[i], v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi16(v[i], v[i + 1]);
    }
    UNROLLED for (int i = 0; i < 8; i += 4)
        UNROLLED for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_unpacklo_epi32(pairs[i + j], pairs[i + j + 2]);
            fours[i + 2 * j + 1] = _mm256_unpackhi_epi32(pairs[i + j], pairs[i + j + 2]);
        }
    UNROLLED for (int i = 0; i < 4; i++) {
        v[2 * i] = _mm256_unpacklo_epi64(fours[i], fours[i + 4]);
        v[2 * i + 1] = _mm256_unpackhi_epi64(fours[i], fours[i + 4]);
    }
}

// The sums of low bytes and of high ones, of sixteen words: each half's eight in 32 bits
AVX2 inline void whole256(__m256i below, __m256i above, __m256i (&eight)[2]) {
    const __m256i weights = _mm256_set1_epi32(256 << 16 | 1);
    const __m256i first = _mm256_madd_epi16(_mm256_unpacklo_epi16(below, above), weights);
    const __m256i last = _mm256_madd_epi16(_mm256_unpackhi_epi16(below, above), weights);
    eight[0] = _mm256_permute2x128_si256(first, last, 0x20);
    eight[1] = _mm256_permute2x128_si256(first, last, 0x31);
}

AVX2 inline void accumulate256(__m256i eight, int32_t *to) {
    auto *place = reinterpret_cast<__m256i *>(to);
    _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), eight));
}

// The sums of a block of terms: what sixteen bytes of one operand have with each byte of the other
template <int PLANES>
class Sums {
  public:
    // `sides` of the one are `step` apart; `picks`, so many, are the other's. Of a folded table the upper half of a
    // row is the lower one's complement. Terms are those listed.
    template <bool FOLDED>
    AVX2 void add(const uint16_t *table, const uint8_t *sides, int64_t step, int64_t side_term, const uint8_t *picks,
                  int64_t pick_term, int64_t count, const uint16_t *list, int64_t terms, const uint32_t *used) {
        for (int64_t k = 0; k < terms;) {
            const int64_t some = terms - k < TERMS ? 1 : TERMS;
            const uint8_t *each[TERMS];
            for (int64_t i = 0; i < some; i++) {
                const int64_t at = list[k + i];
                lay_out<FOLDED>(table, sides + at * side_term, step, used[at], laid_[i]);
                each[i] = picks + at * pick_term;
            }
            const auto pick = k ? (some == TERMS ? &Sums::pick<TERMS, false> : &Sums::pick<1, false>)
                                : (some == TERMS ? &Sums::pick<TERMS, true> : &Sums::pick<1, true>);
            (this->*pick)(each, count);
            k += some;
        }
    }

    AVX2 void clear(int64_t count) {
        for (int64_t n = 0; n < count; n++) low_[n] = high_[n] = _mm256_setzero_si256();
    }

    // What the picks listed have beyond the `idle` one, of one term
    template <bool FOLDED>
    AVX2 void add_some(const uint16_t *table, const uint8_t *sides, const uint8_t *picks, const uint16_t *list,
                       int64_t count, uint8_t idle, uint32_t used) {
        lay_out<FOLDED>(table, sides, 1, used | 1u << idle / 8, laid_[0]);
        const __m256i none = laid_[0][idle], none_high = _mm256_srli_epi16(none, 8);
        for (int64_t i = 0; i < count; i++) {
            const int64_t n = list[i];
            const __m256i word = laid_[0][picks[n]];
            low_[n] = _mm256_add_epi16(low_[n], _mm256_sub_epi16(word, none));
            if constexpr (PLANES == 2)
                high_[n] = _mm256_add_epi16(high_[n], _mm256_sub_epi16(_mm256_srli_epi16(word, 8), none_high));
        }
    }

    // Adds the sums where each side has a row; behind the last lane, up to a multiple of eight, whatever there is
    AVX2 void flush_rows(int64_t sides, int64_t count, int32_t *sums, int64_t width) const {
        for (int64_t n = 0; n < count; n += 8) {
            __m256i bytes[2][8];
            UNROLLED for (int i = 0; i < 8; i++) of(n + i, bytes[0][i], bytes[1][i]);
            transpose256(bytes[0]);
            transpose256(bytes[1]);
            UNROLLED for (int i = 0; i < 8; i++) {
                __m256i eight[2];
                whole256(bytes[0][i], bytes[1][i], eight);
                if (i < sides) accumulate256(eight[0], sums + i * width + n);
                if (i + 8 < sides) accumulate256(eight[1], sums + (i + 8) * width + n);
            }
        }
    }

    // The same where each side has a lane
    AVX2 void flush_lanes(int64_t count, int32_t *sums, int64_t width) const {
        for (int64_t m = 0; m < count; m++) {
            __m256i below, above, eight[2];
            of(m, below, above);
            whole256(below, above, eight);
            UNROLLED for (int i = 0; i < 2; i++) accumulate256(eight[i], sums + m * width + 8 * i);
        }
    }

  private:
    // to[e] = entry e of the rows that the sides pick, for the eights of entries that are `used`
    template <bool FOLDED>
    AVX2 static void lay_out(const uint16_t *table, const uint8_t *sides, int64_t step, uint32_t used, __m256i *to) {
        const __m256i tops = _mm256_set1_epi16(PLANES == 2 ? -1 : 255);
        const uint16_t *row[SIDE];
        UNROLLED for (int i = 0; i < SIDE; i++) {
            row[i] = table + ENTRIES * sides[i * step];
            asm("" : "+r"(row[i]));  // or else GCC makes the addresses in vectors, and takes them out again
        }
        for (; used; used &= used - 1) {
            const int64_t e = 8 * __builtin_ctz(used);
            __m256i v[8];
            UNROLLED for (int i = 0; i < 8; i++)
                v[i] = _mm256_loadu2_m128i(reinterpret_cast<const __m128i *>(row[i + 8] + e),
                                           reinterpret_cast<const __m128i *>(row[i] + e));
            transpose256(v);
            UNROLLED for (int i = 0; i < 8; i++) {
                to[e + i] = v[i];
                if constexpr (FOLDED) to[ENTRIES / 2 + e + i] = _mm256_xor_si256(v[i], tops);
            }
        }
    }

    // The first terms' sums take the place of those before
    template <int COUNT, bool FIRST>
    AVX2 void pick(const uint8_t *const (&picks)[TERMS], int64_t count) {
        for (int64_t n = 0; n < count; n++) {
            __m256i word = laid_[0][picks[0][n]], byte = _mm256_srli_epi16(word, 8);
            UNROLLED for (int k = 1; k < COUNT; k++) {
                const __m256i next = laid_[k][picks[k][n]];
                word = _mm256_add_epi16(word, next);
                byte = _mm256_add_epi16(byte, _mm256_srli_epi16(next, 8));
            }
            low_[n] = FIRST ? word : _mm256_add_epi16(low_[n], word);
            if constexpr (PLANES == 2) high_[n] = FIRST ? byte : _mm256_add_epi16(high_[n], byte);
        }
    }

    // The sums of the low bytes and of the high ones
    AVX2 void of(int64_t n, __m256i &below, __m256i &above) const {
        above = PLANES == 2 ? high_[n] : _mm256_setzero_si256();
        below = _mm256_sub_epi16(low_[n], _mm256_slli_epi16(above, 8));
    }

    __m256i laid_[TERMS][ENTRIES], low_[PICKS], high_[PICKS];
};

// Whether any of 32 bytes has a bit, for each of eight bits
AVX2 inline uint32_t any_of(__m256i bytes) {
    const __m128i half = _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    uint64_t eight = uint64_t(_mm_cvtsi128_si64(_mm_or_si128(half, _mm_unpackhi_epi64(half, half))));
    for (int shift = 32; shift >= 8; shift /= 2) eight |= eight >> shift;
    return eight & 255;
}

// Which eights of entries are picked, a bit for each
template <bool FOLDED>
AVX2 inline uint32_t eights(const uint8_t *picks, int64_t count) {
    const __m256i low = _mm256_setr_epi64x(int64_t(0x8040201008040201u), 0, int64_t(0x8040201008040201u), 0);
    const __m256i high = _mm256_shuffle_epi32(low, 0x4e), top = _mm256_set1_epi8(char(128));
    __m256i any[4] = {};
    int64_t n = 0;
    for (; n + 32 <= count; n += 32) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(picks + n));
        __m256i eight = _mm256_and_si256(_mm256_srli_epi16(bytes, 3), _mm256_set1_epi8(15));
        if constexpr (!FOLDED) eight = _mm256_or_si256(eight, _mm256_and_si256(bytes, top));  // none of the lower half
        UNROLLED for (int half = 0; half < (FOLDED ? 1 : 2); half++, eight = _mm256_xor_si256(eight, top)) {
            any[2 * half] = _mm256_or_si256(any[2 * half], _mm256_shuffle_epi8(low, eight));
            any[2 * half + 1] = _mm256_or_si256(any[2 * half + 1], _mm256_shuffle_epi8(high, eight));
        }
    }
    uint32_t used = any_of(any[0]) | any_of(any[1]) << 8 | any_of(any[2]) << 16 | any_of(any[3]) << 24;
    for (; n < count; n++) used |= 1u << (picks[n] / 8 % (FOLDED ? 16 : 32));
    return used;
}

// The places 0, 1, ...
inline void all_of(int64_t count, uint16_t *list) {
    for (int64_t k = 0; k < count; k++) list[k] = uint16_t(k);
}

// A micro-kernel, rows side by side; a has room for the next multiple of sixteen rows
template <int PLANES, bool FOLDED>
AVX2 void by_rows256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                     int64_t lanes, int32_t *sums, int64_t width) {
    static_assert(LANES <= PICKS);
    uint16_t list[BLOCK];
    uint32_t used[BLOCK];
    all_of(terms, list);
    for (int64_t k = 0; k < terms; k++) used[k] = eights<FOLDED>(b + k * b_term, lanes);
    Sums<PLANES> of;
    for (; rows > 0; rows -= SIDE, a += SIDE * BLOCK, sums += SIDE * width) {
        of.template add<FOLDED>(plan.values, a, BLOCK, 1, b, b_term, lanes, list, terms, used);
        of.flush_rows(std::min(SIDE, rows), lanes, sums, width);
    }
}

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

// How bytes of a pick from the table turned over: where both operands have signs, its rows are folded too
template <bool FOLDED>
uint8_t pick_of(uint8_t byte) {
    return FOLDED && byte >= 128 ? uint8_t(128 - byte) : byte;  // sign and magnitude
}

// A micro-kernel of at most `PICKS` rows, lanes side by side. Where both operands have signs the entries, here a's, are
// folded too.
template <int PLANES, bool FOLDED>
AVX2 void by_lanes256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                      int64_t lanes, int32_t *sums, int64_t width) {
    uint8_t by_term[BLOCK * PICKS];
    uint16_t list[BLOCK];
    uint32_t used[BLOCK];
    all_of(terms, list);
    for (int64_t m = 0; m < rows; m++)
        for (int64_t k = 0; k < terms; k++) by_term[k * PICKS + m] = pick_of<FOLDED>(a[m * BLOCK + k]);
    for (int64_t k = 0; k < terms; k++) used[k] = eights<FOLDED>(by_term + k * PICKS, rows);
    Sums<PLANES> of;
    for (int64_t n = 0; n < lanes; n += SIDE) {
        of.template add<FOLDED>(plan.turned, b + n, 1, b_term, by_term, PICKS, rows, list, terms, used);
        of.flush_lanes(rows, sums + n, width);
    }
}

// The same of at most `DEPTH` terms, which pick for the rows that have them active
template <int PLANES, bool FOLDED>
AVX2 void few_by_lanes256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b,
                          int64_t b_term, int64_t lanes, int32_t *sums, int64_t width) {
    const uint8_t idle = uint8_t(plan.idle);
    uint8_t by_term[BLOCK * PICKS];
    uint16_t lists[BLOCK][PICKS + 32];
    uint32_t used[BLOCK];
    int64_t counts[BLOCK];
    Sums<PLANES> of;
    for (int64_t k0 = 0; k0 < terms; k0 += BLOCK) {
        const int64_t count = std::min(BLOCK, terms - k0);
        for (int64_t m = 0; m < rows; m++)
            for (int64_t k = 0; k < count; k++) by_term[k * PICKS + m] = pick_of<FOLDED>(a[m * DEPTH + k0 + k]);
        for (int64_t k = 0; k < count; k++) {
            used[k] = eights<FOLDED>(by_term + k * PICKS, rows);
            counts[k] = active_portable(by_term + k * PICKS, rows, idle, lists[k]);
        }
        for (int64_t n = 0; n < lanes; n += SIDE) {
            of.clear(rows);
            for (int64_t k = 0; k < count; k++)
                if (counts[k])
                    of.template add_some<FOLDED>(plan.turned, b + (k0 + k) * b_term + n, by_term + k * PICKS, lists[k],
                                                 counts[k], idle, used[k]);
            of.flush_lanes(rows, sums + n, width);
        }
    }
}

}  // namespace
#endif
