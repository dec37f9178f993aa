//! Dynamic shared memory with one ring in it.

use core::sync::atomic::AtomicU64;
use mtm_dmq::ring::Ring;
use pgrx::pg_sys;

/// Bytes of an apply worker's ring.
pub const RING_BYTES: usize = 512 * 1024;

/// Makes a segment with an empty ring; it lives as long as a process has it mapped.
pub fn create() -> (u32, Ring<'static>) {
    let words = Ring::words_for(RING_BYTES);
    // SAFETY: a new segment of that size, mapped for the life of this process and page-aligned.
    unsafe {
        let segment = pg_sys::dsm_create(words * 8, 0);
        pg_sys::dsm_pin_mapping(segment);
        let start = pg_sys::dsm_segment_address(segment).cast::<AtomicU64>();
        let slice = core::slice::from_raw_parts(start, words);
        (pg_sys::dsm_segment_handle(segment), Ring::init(slice))
    }
}

/// Maps a segment that [`create`] made; `None` if it is gone.
pub fn attach(handle: u32) -> Option<Ring<'static>> {
    let words = Ring::words_for(RING_BYTES);
    // SAFETY: the segment was made by `create` and is mapped for the life of this process.
    unsafe {
        let segment = pg_sys::dsm_attach(handle);
        if segment.is_null() {
            return None;
        }
        pg_sys::dsm_pin_mapping(segment);
        let start = pg_sys::dsm_segment_address(segment).cast::<AtomicU64>();
        Ring::attach(core::slice::from_raw_parts(start, words)).ok()
    }
}
