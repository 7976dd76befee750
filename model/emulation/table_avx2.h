// Lookups of sixteen bytes of one operand at once (AVX2): what they pick from the table is laid out side by side, so
// that each byte of the other operand picks sixteen values with one load. Side by side lie rows or, where lanes are few,
// lanes: laying out pays off where many bytes pick. Values are words, summed modulo 2^16; what a sum has beyond that
// their high bytes tell, which are summed apart.

#pragma once

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
    // row is the lower one's complement.
    template <bool FOLDED>
    AVX2 void add(const uint16_t *table, const uint8_t *sides, int64_t step, int64_t side_term, const uint8_t *picks,
                  int64_t pick_term, int64_t count, int64_t terms, const uint32_t *used) {
        for (int64_t k = 0; k < terms;) {
            const int64_t some = terms - k < TERMS ? 1 : TERMS;
            for (int64_t i = 0; i < some; i++)
                lay_out<FOLDED>(table, sides + (k + i) * side_term, step, used[k + i], laid_[i]);
            const auto pick = k ? (some == TERMS ? &Sums::pick<TERMS, false> : &Sums::pick<1, false>)
                                : (some == TERMS ? &Sums::pick<TERMS, true> : &Sums::pick<1, true>);
            (this->*pick)(picks + k * pick_term, pick_term, count);
            k += some;
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
    AVX2 void pick(const uint8_t *picks, int64_t pick_term, int64_t count) {
        for (int64_t n = 0; n < count; n++) {
            __m256i word = laid_[0][picks[n]], byte = _mm256_srli_epi16(word, 8);
            UNROLLED for (int k = 1; k < COUNT; k++) {
                const __m256i next = laid_[k][picks[k * pick_term + n]];
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

// A micro-kernel, rows side by side; a has room for the next multiple of sixteen rows
template <int PLANES, bool FOLDED>
AVX2 void by_rows256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                     int64_t lanes, int32_t *sums, int64_t width) {
    static_assert(LANES <= PICKS);
    uint32_t used[BLOCK];
    for (int64_t k = 0; k < terms; k++) used[k] = eights<FOLDED>(b + k * b_term, lanes);
    Sums<PLANES> of;
    for (; rows > 0; rows -= SIDE, a += SIDE * BLOCK, sums += SIDE * width) {
        of.template add<FOLDED>(plan.values, a, BLOCK, 1, b, b_term, lanes, terms, used);
        of.flush_rows(std::min(SIDE, rows), lanes, sums, width);
    }
}

// A micro-kernel of at most `PICKS` rows, lanes side by side. Where both operands have signs the entries, here a's, are
// folded too.
template <int PLANES, bool FOLDED>
AVX2 void by_lanes256(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                      int64_t lanes, int32_t *sums, int64_t width) {
    uint8_t by_term[BLOCK * PICKS];
    uint32_t used[BLOCK];
    for (int64_t m = 0; m < rows; m++)
        for (int64_t k = 0; k < terms; k++) {
            const uint8_t byte = a[m * BLOCK + k];
            by_term[k * PICKS + m] = FOLDED && byte >= 128 ? uint8_t(128 - byte) : byte;  // sign and magnitude
        }
    for (int64_t k = 0; k < terms; k++) used[k] = eights<FOLDED>(by_term + k * PICKS, rows);
    Sums<PLANES> of;
    for (int64_t n = 0; n < lanes; n += SIDE) {
        of.template add<FOLDED>(plan.turned, b + n, 1, b_term, by_term, PICKS, rows, terms, used);
        of.flush_lanes(rows, sums + n, width);
    }
}

}  // namespace
#endif
