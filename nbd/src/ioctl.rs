//! The one door to ioctls: numbers and pointers go in, the kernel's number comes out. `unsafe` for what is passed by
//! address is here and nowhere else; so is what keeps signals from a thread that is in such a call for long.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

/// A call whose argument is a number, or an address that outlives it.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: the opcode and the argument are what the callers below say, and the output is the call's own result.
#[expect(unsafe_code, reason = "rustix asks for it of every kind of ioctl")]
unsafe impl Ioctl for Call {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> io::Result<i32> {
        Ok(out)
    }
}

/// A call with a number, or with nothing (0). For opcodes that take no address.
pub(crate) fn number(fd: impl AsFd, opcode: Opcode, argument: usize) -> io::Result<i32> {
    let call = Call { opcode, argument: std::ptr::without_provenance_mut(argument) };
    // SAFETY: what the callers in this crate pass here (opcodes of loop, nbd and file systems with numbers) the kernel
    // doesn't take for an address.
    #[expect(unsafe_code, reason = "the kernel reads the number as a number")]
    unsafe {
        ioctl(fd, call)
    }
}

/// Keeps signals from the thread that calls this: others get them.
pub(crate) fn block_signals() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` fills what it is given, which lives as long as the calls; nothing is asked for in return.
    #[expect(unsafe_code, reason = "there is no other way to a thread's signal mask")]
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// A call with a structure that the kernel reads or fills, laid out as bytes.
pub(crate) fn structure<const N: usize>(
    fd: impl AsFd,
    opcode: Opcode,
    bytes: &mut [u8; N],
) -> io::Result<i32> {
    let call = Call { opcode, argument: bytes.as_mut_ptr().cast() };
    // SAFETY: the array outlives the call, nobody else has it, and it is as long as the structure of the opcode: that
    // is a constant of each caller's, next to the opcode.
    #[expect(
        unsafe_code,
        reason = "the kernel reads and writes at the address of an array that is there"
    )]
    unsafe {
        ioctl(fd, call)
    }
}
