//! Overwrites memory that is no longer used. The program's allocator is that of the system, but blocks are overwritten
//! before they are given back.
//!
//! Freed blocks of up to 64 KiB are overwritten, so that the data of a deleted face does not stay in freed memory. Larger
//! blocks are not: they hold pixels and weights, and overwriting them would cost time. C++ libraries allocate by
//! themselves.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    mem::MaybeUninit,
};

/// The largest block that is overwritten, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Gives back memory without its contents.
pub(crate) struct WipingAllocator;

/// The depth of stack that is overwritten, in bytes: more than the calls of a use case need.
const STACK_BYTES: usize = 128 << 10;

/// Overwrites the stack below the caller's frame, where ciphers and hashes have worked on pieces of their input.
#[inline(never)]
pub(crate) fn wipe_stack() {
    let mut below = MaybeUninit::<[u8; STACK_BYTES]>::uninit();
    // SAFETY: the array has so many bytes.
    unsafe { wipe(below.as_mut_ptr().cast(), STACK_BYTES) };
}

/// # Safety
/// `size` bytes at `block` can be written.
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: the caller's promise. Unlike other writes before a release, this one is never left out by the compiler.
    unsafe { libc::explicit_bzero(block.cast(), size) };
}

// SAFETY: every block comes from the system's allocator and goes back there, with the same layout.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() <= MAX_BYTES {
            // SAFETY: the block has this size, and nobody uses it any more.
            unsafe { wipe(block, layout.size()) };
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.size() > MAX_BYTES {
            // SAFETY: the caller's promise.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        // The system could move the block and leave its contents behind.
        // SAFETY: the new size is not zero and fits, as the caller promises; the alignment is that of the old block.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both blocks have so many bytes, and are not the same.
            unsafe { new.copy_from_nonoverlapping(block, layout.size().min(new_size)) };
            // SAFETY: its contents are copied, and the caller gives it up.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}
