// Gaussian noise added to a tensor: Philox4x32-10 (Salmon et al., SC 2011) and the Box-Muller transform in float32.
//
// Only operations whose result IEEE 754 fixes are used, in a fixed order (no fused multiply-add: see the options in
// model/native.py), so that every machine, and model/noise.py's NumPy code, draws the same bits.
// A block is 16 lanes of one counter each, which give 4 x 16 values; compilers turn the loops over lanes into vectors.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;
constexpr int BLOCK = 4 * LANES;

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// 64 random words of the block whose first counter is `counter`. Kept in 64 bits each: so the products need no shuffles.
inline void philox(uint64_t counter, uint64_t key, uint32_t w[4][LANES]) {
    uint64_t v[4][LANES];
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int l = 0; l < LANES; ++l) {
        const uint64_t c = counter + l;
        v[0][l] = uint32_t(c), v[1][l] = c >> 32, v[2][l] = 0, v[3][l] = 0;
    }
    for (int round = 0; round < 10; ++round) {
        for (int l = 0; l < LANES; ++l) {
            const uint64_t p0 = uint64_t(0xD2511F53u) * v[0][l], p1 = uint64_t(0xCD9E8D57u) * v[2][l];
            v[0][l] = (p1 >> 32) ^ v[1][l] ^ k0;
            v[1][l] = p1 & 0xFFFFFFFFu;
            v[2][l] = (p0 >> 32) ^ v[3][l] ^ k1;
            v[3][l] = p0 & 0xFFFFFFFFu;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; ++i) {
        for (int l = 0; l < LANES; ++l) w[i][l] = uint32_t(v[i][l]);
    }
}

// Two normal values of two random words.
inline void box_muller(uint32_t a, uint32_t b, float& z0, float& z1) {
    // -ln u, u = ((a >> 8) + 1) / 2^24 in (0, 1]: u = m 2^e with m in [sqrt(1/2), sqrt(2)); coefficients of Cephes' logf
    const uint32_t bits = as_bits(float(int32_t((a >> 8) + 1)));  // exact
    const uint32_t shifted = bits - 0x3F3504F3u;
    const float e = float(int32_t(shifted >> 23) - 24);
    const float f = as_float((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * f + -1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f + -1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f + -1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f + -2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const float ff = f * f;
    const float ln = ((p * f * ff - 0.5f * ff) + f) + e * 0.69314718056f;
    const float r = std::sqrt(0.0f - ln);
    // The angle is a quarter turn's, pi/4 + t; two more bits choose the signs.
    const float t = float(int32_t(b) >> 8) * 9.3622534e-8f;  // [-2^23, 2^23) to [-pi/4, pi/4)
    const float tt = t * t;
    const float s = ((-1.9515295891e-4f * tt + 8.3321608736e-3f) * tt + -1.6666654611e-1f) * tt * t + t;
    const float c = ((2.443315711809948e-5f * tt + -1.388731625493765e-3f) * tt + 4.166664568298827e-2f) * tt * tt -
                    0.5f * tt + 1.0f;
    z0 = as_float(as_bits(r * (c - s)) ^ (b << 31));
    z1 = as_float(as_bits(r * (c + s)) ^ ((b << 30) & 0x80000000u));
}

inline void block(uint64_t counter, uint64_t key, float z[4][LANES]) {
    uint32_t w[4][LANES];
    philox(counter, key, w);
    for (int l = 0; l < LANES; ++l) box_muller(w[0][l], w[1][l], z[0][l], z[1][l]);
    for (int l = 0; l < LANES; ++l) box_muller(w[2][l], w[3][l], z[2][l], z[3][l]);
}

}  // namespace

// out[i] = x[i] + (deviation * z[i] + offset) with normal z; `out` may be `x`.
extern "C" void redcane_noise(const float* x, float* out, int64_t n, uint64_t key, float deviation, float offset) {
    float z[4][LANES];
    const float* const flat = &z[0][0];
    int64_t start = 0;
    for (; start + BLOCK <= n; start += BLOCK) {
        block(uint64_t(start / 4), key, z);
        for (int i = 0; i < BLOCK; ++i) out[start + i] = x[start + i] + (deviation * flat[i] + offset);
    }
    if (start < n) {
        block(uint64_t(start / 4), key, z);
        for (int64_t i = start; i < n; ++i) out[i] = x[i] + (deviation * flat[i - start] + offset);
    }
}
