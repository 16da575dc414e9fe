// Tile registers (Advanced Matrix Extensions), as every kernel has them: eight of 16 rows of 64
// bytes. Included inside the region of amx.

/// The configuration takes longer than a product of 32 x 32 x 64: once for each piece of work.
static void begin_tiles(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1,
                .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}

static void end_tiles(void) { _tile_release(); }
