// Closes the region that lmk_begin.h opened.
#pragma clang diagnostic pop
#if defined(LMK_AVX512) || defined(LMK_TARGET_AVX2)
#pragma clang attribute pop
#endif
#undef LMK_AVX512
