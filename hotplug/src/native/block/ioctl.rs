//! The ioctls of the loop driver: all of the handler's code that is `unsafe`.
//!
//! The structures are those of the kernel's public header, as linux-raw-sys has them. The calls are made through libc,
//! since rustix wraps none of these four.

#![allow(unsafe_code)]

use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;

use linux_raw_sys::loop_device::{
    LO_FLAGS_READ_ONLY, LO_NAME_SIZE, LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64,
    loop_config, loop_info64,
};

/// Nothing said.
const INFO: loop_info64 = loop_info64 {
    lo_device: 0,
    lo_inode: 0,
    lo_rdevice: 0,
    lo_offset: 0,
    lo_sizelimit: 0,
    lo_number: 0,
    lo_encrypt_type: 0,
    lo_encrypt_key_size: 0,
    lo_flags: 0,
    lo_file_name: [0; LO_NAME_SIZE as usize],
    lo_crypt_name: [0; LO_NAME_SIZE as usize],
    lo_encrypt_key: [0; 32],
    lo_init: [0; 2],
};

/// One ioctl with an argument that the kernel reads or writes; its result.
///
/// # Safety
///
/// `argument` is what `request` asks for: a number, or a pointer to a valid value of its type.
unsafe fn call(file: &File, request: u32, argument: *mut loop_config) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the caller vouches for the argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), c_ulong::from(request), argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The number of a loop device that was free when the kernel looked; it is made if it is not there.
pub(super) fn get_free(control: &File) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let number = unsafe { call(control, LOOP_CTL_GET_FREE, ptr::null_mut()) }?;
    Ok(number.unsigned_abs())
}

/// Makes a loop device serve a file, from its beginning to its end, through the page cache, until it is told
/// otherwise. `name` is what the kernel tells again of it, as far as it has room.
pub(super) fn configure(device: &File, image: &File, name: &[u8], read_only: bool) -> io::Result<()> {
    let mut info = INFO;
    // The last byte stays 0.
    let room = info.lo_file_name.len() - 1;
    info.lo_file_name.iter_mut().zip(name.iter().take(room)).for_each(|(to, from)| *to = *from);
    if read_only {
        info.lo_flags = LO_FLAGS_READ_ONLY as u32;
    }
    let fd = image.as_raw_fd().unsigned_abs();
    let mut config = loop_config { fd, block_size: 0, info, __reserved: [0; 8] };
    // SAFETY: the request reads a `loop_config`, which lives until the call has returned.
    unsafe { call(device, LOOP_CONFIGURE, &raw mut config) }.map(drop)
}

/// The file that a loop device serves: the number of its file system and its own in that. `ENXIO` if it serves none.
pub(super) fn served(device: &File) -> io::Result<(u64, u64)> {
    let mut info = INFO;
    // SAFETY: the request writes a `loop_info64`, which lives until the call has returned. The kernel does not know
    // the pointer's type.
    unsafe { call(device, LOOP_GET_STATUS64, (&raw mut info).cast()) }?;
    Ok((info.lo_device, info.lo_inode))
}

/// Makes a loop device serve nothing, at once or when the last descriptor of it is closed. `ENXIO` if it serves nothing.
pub(super) fn clear(device: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { call(device, LOOP_CLR_FD, ptr::null_mut()) }.map(drop)
}
