//! Capability sets as bit masks, in as few system calls as can be.

use std::io;

use crate::check;

/// The three sets of the calling thread, one bit per capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// What it may use now.
    pub effective: u64,
    /// What it may make effective.
    pub permitted: u64,
    /// What it may hand to programs that inherit.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// Reads them.
///
/// # Errors
/// The kernel's.
pub fn read() -> io::Result<Sets> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 writes two data structs, which is what is passed.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Sets them.
///
/// # Errors
/// The kernel's: `EPERM` for more than is permitted.
pub fn write(sets: Sets) -> io::Result<()> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads two data structs, which is what is passed.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Takes capabilities out of the bounding set. Those that the kernel doesn't know are out already.
///
/// # Errors
/// The kernel's.
pub fn drop_bounding(drop: u64) -> io::Result<()> {
    for cap in (0..64u64).filter(|cap| drop & (1 << cap) != 0) {
        // SAFETY: takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0u64, 0u64, 0u64) };
        match check(result.into()) {
            // Numbers have no gaps: this one and all above are unknown.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other?,
        };
    }
    Ok(())
}

/// Makes the ambient set exactly this.
///
/// # Errors
/// The kernel's: `EPERM` for what is not both permitted and inheritable.
pub fn set_ambient(set: u64) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(
        unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
                0u64,
                0u64,
                0u64,
            )
        }
        .into(),
    )?;
    for cap in (0..64u64).filter(|cap| set & (1 << cap) != 0) {
        // SAFETY: takes numbers only.
        check(
            unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE as u64,
                    cap,
                    0u64,
                    0u64,
                )
            }
            .into(),
        )?;
    }
    Ok(())
}
