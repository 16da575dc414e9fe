// Closes the region that lmk_begin.h opened.
#pragma clang diagnostic pop
#if defined(LMK_TARGET_AVX512) || defined(LMK_TARGET_AVX512_BF16) || defined(LMK_TARGET_AVX2)
#pragma clang attribute pop
#endif
