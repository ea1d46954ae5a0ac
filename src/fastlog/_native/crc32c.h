/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) with run-time dispatch.
 *
 * x86-64 with AVX-512 and VPCLMULQDQ: 256 bytes at a time are folded by carry-less multiplication, and the last 256 go
 * through the crc32 instruction. Other x86-64: three interleaved streams of the crc32 instruction (its latency is three
 * cycles, its throughput one), joined by a carry-less multiplication. AArch64: the crc32cx instruction. Elsewhere: slicing by eight tables.
 *
 * Joining: appending n zero bytes multiplies the remainder by x^(8n) mod P. With bit-reflected operands the product
 * a·b of a carry-less multiplication comes out one bit low, and crc32(0, v) multiplies by x^32, so that
 * crc32(0, a·b) = a·b·x^33 mod P; hence the constants x^(8n-33) mod P below. They are computed once, at import.
 *
 * Folding: a 128-bit lane is the polynomial L·x^64 + H (L: its low half, which comes first in the data). Moving it D bits
 * ahead is L·x^(64+D) + H·x^D; as a product comes out one bit low, the factors are x^(D+63) and x^(D-1) mod P. */
#ifndef FASTLOG_CRC32C_H
#define FASTLOG_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FASTLOG_CRC32C_POLYNOMIAL 0x82F63B78u

typedef uint32_t (*fastlog_crc32c_function)(uint32_t, const uint8_t *, size_t);

static uint32_t fastlog_crc32c_table[8][256];

static uint32_t fastlog_crc32c_software(uint32_t crc, const uint8_t *data, size_t size)
{
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = fastlog_crc32c_table[7][word & 0xFF] ^ fastlog_crc32c_table[6][(word >> 8) & 0xFF]
            ^ fastlog_crc32c_table[5][(word >> 16) & 0xFF] ^ fastlog_crc32c_table[4][(word >> 24) & 0xFF]
            ^ fastlog_crc32c_table[3][(word >> 32) & 0xFF] ^ fastlog_crc32c_table[2][(word >> 40) & 0xFF]
            ^ fastlog_crc32c_table[1][(word >> 48) & 0xFF] ^ fastlog_crc32c_table[0][word >> 56];
        data += 8;
        size -= 8;
    }
    while (size--)
        crc = (crc >> 8) ^ fastlog_crc32c_table[0][(crc ^ *data++) & 0xFF];
    return crc;
}

static fastlog_crc32c_function fastlog_crc32c_best = fastlog_crc32c_software;
static const char *fastlog_crc32c_name = "software";

#if defined(__x86_64__)
#include <immintrin.h>

#define FASTLOG_CRC_LONG 2048
#define FASTLOG_CRC_SHORT 256

static uint32_t fastlog_crc32c_join[4]; /* long x2, long x1, short x2, short x1 */

static uint32_t fastlog_crc32c_power(size_t exponent)
{
    uint32_t value = 0x80000000u;
    while (exponent--)
        value = (value >> 1) ^ ((value & 1) ? FASTLOG_CRC32C_POLYNOMIAL : 0);
    return value;
}

__attribute__((target("sse4.2,pclmul"))) static inline uint64_t fastlog_crc32c_shift(uint64_t crc, uint32_t factor)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi32_si128((int)factor), 0);
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

#define FASTLOG_CRC_STREAMS(length, twice, once)                                                     \
    while (size >= 3 * (length)) {                                                                   \
        uint64_t second = 0, third = 0;                                                              \
        for (size_t i = 0; i < (length); i += 8) {                                                   \
            uint64_t a, b, c;                                                                        \
            memcpy(&a, data + i, 8);                                                                 \
            memcpy(&b, data + (length) + i, 8);                                                      \
            memcpy(&c, data + 2 * (length) + i, 8);                                                  \
            first = _mm_crc32_u64(first, a);                                                         \
            second = _mm_crc32_u64(second, b);                                                       \
            third = _mm_crc32_u64(third, c);                                                         \
        }                                                                                            \
        first = fastlog_crc32c_shift(first, twice) ^ fastlog_crc32c_shift(second, once) ^ third;     \
        data += 3 * (length);                                                                        \
        size -= 3 * (length);                                                                        \
    }

__attribute__((target("sse4.2,pclmul"))) static uint32_t fastlog_crc32c_x86(uint32_t crc, const uint8_t *data, size_t size)
{
    uint64_t first = crc;
    FASTLOG_CRC_STREAMS(FASTLOG_CRC_LONG, fastlog_crc32c_join[0], fastlog_crc32c_join[1])
    FASTLOG_CRC_STREAMS(FASTLOG_CRC_SHORT, fastlog_crc32c_join[2], fastlog_crc32c_join[3])
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        first = _mm_crc32_u64(first, word);
        data += 8;
        size -= 8;
    }
    while (size--)
        first = _mm_crc32_u8((uint32_t)first, *data++);
    return (uint32_t)first;
}

#define FASTLOG_CRC_FOLD 256    /* bytes folded at a time: four 512-bit registers */
#define FASTLOG_CRC_FOLD_FROM 1024

static uint64_t fastlog_crc32c_fold[2];

__attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq"))) static uint32_t fastlog_crc32c_avx512(
    uint32_t crc, const uint8_t *data, size_t size)
{
    if (size < FASTLOG_CRC_FOLD_FROM)
        return fastlog_crc32c_x86(crc, data, size);
    const __m512i factors = _mm512_broadcast_i32x4(
        _mm_set_epi64x((long long)fastlog_crc32c_fold[1], (long long)fastlog_crc32c_fold[0]));
    __m512i lane[4];
    uint8_t rest[FASTLOG_CRC_FOLD];
    for (int i = 0; i < 4; i++)
        lane[i] = _mm512_loadu_si512(data + 64 * i);
    lane[0] = _mm512_xor_si512(lane[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    data += FASTLOG_CRC_FOLD;
    size -= FASTLOG_CRC_FOLD;
    while (size >= FASTLOG_CRC_FOLD) {
        for (int i = 0; i < 4; i++) {
            __m512i low = _mm512_clmulepi64_epi128(lane[i], factors, 0x00);
            __m512i high = _mm512_clmulepi64_epi128(lane[i], factors, 0x11);
            lane[i] = _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(data + 64 * i), 0x96);
        }
        data += FASTLOG_CRC_FOLD;
        size -= FASTLOG_CRC_FOLD;
    }
    for (int i = 0; i < 4; i++)
        _mm512_storeu_si512(rest + 64 * i, lane[i]);
    /* what is left in the lanes is a message of 256 bytes with the same remainder */
    return fastlog_crc32c_x86(fastlog_crc32c_x86(0, rest, FASTLOG_CRC_FOLD), data, size);
}

static void fastlog_crc32c_choose(void)
{
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul"))
        return;
    fastlog_crc32c_join[0] = fastlog_crc32c_power(16 * FASTLOG_CRC_LONG - 33);
    fastlog_crc32c_join[1] = fastlog_crc32c_power(8 * FASTLOG_CRC_LONG - 33);
    fastlog_crc32c_join[2] = fastlog_crc32c_power(16 * FASTLOG_CRC_SHORT - 33);
    fastlog_crc32c_join[3] = fastlog_crc32c_power(8 * FASTLOG_CRC_SHORT - 33);
    fastlog_crc32c_best = fastlog_crc32c_x86;
    fastlog_crc32c_name = "sse4.2+pclmul";
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("vpclmulqdq"))
        return;
    fastlog_crc32c_fold[0] = (uint64_t)fastlog_crc32c_power(8 * FASTLOG_CRC_FOLD + 63) << 32;
    fastlog_crc32c_fold[1] = (uint64_t)fastlog_crc32c_power(8 * FASTLOG_CRC_FOLD - 1) << 32;
    fastlog_crc32c_best = fastlog_crc32c_avx512;
    fastlog_crc32c_name = "avx512+vpclmulqdq";
}

#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

__attribute__((target("+crc"))) static uint32_t fastlog_crc32c_arm(uint32_t crc, const uint8_t *data, size_t size)
{
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        crc = __crc32cd(crc, word);
        data += 8;
        size -= 8;
    }
    while (size--)
        crc = __crc32cb(crc, *data++);
    return crc;
}

static void fastlog_crc32c_choose(void)
{
#if defined(__linux__)
    if (!(getauxval(AT_HWCAP) & (1 << 7))) /* HWCAP_CRC32 */
        return;
#endif
    fastlog_crc32c_best = fastlog_crc32c_arm;
    fastlog_crc32c_name = "armv8-crc";
}

#else
static void fastlog_crc32c_choose(void) {}
#endif

static void fastlog_crc32c_setup(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) ? FASTLOG_CRC32C_POLYNOMIAL : 0);
        fastlog_crc32c_table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slice = 1; slice < 8; slice++)
            fastlog_crc32c_table[slice][byte] = (fastlog_crc32c_table[slice - 1][byte] >> 8)
                ^ fastlog_crc32c_table[0][fastlog_crc32c_table[slice - 1][byte] & 0xFF];
    fastlog_crc32c_choose();
}

#endif
