//! Archives with names and kinds of entries that the usual writers refuse.

/// A tar, written entry by entry with names that the usual writers refuse.
pub(crate) struct Builder {
    pub(crate) bytes: Vec<u8>,
}

/// What an entry says beside its name.
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
}

/// A file of root that everybody may read.
pub(crate) const PLAIN: Attributes = Attributes {
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 1_500_000_000,
    device: (0, 0),
};

impl Builder {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = ::tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let bytes = builder.into_inner().unwrap();
        self.bytes.extend_from_slice(&bytes[..bytes.len() - 1024]);
        self
    }

    pub(crate) fn entry(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        content: &[u8],
        attributes: &Attributes,
    ) -> Self {
        let mut header = ::tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_size(content.len() as u64);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid);
        header.set_gid(attributes.gid);
        header.set_mtime(attributes.mtime);
        header.set_device_major(attributes.device.0).unwrap();
        header.set_device_minor(attributes.device.1).unwrap();
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, "", content.as_bytes(), &PLAIN)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"", &Attributes { mode: 0o755, ..PLAIN })
    }

    pub(crate) fn dir_of(self, name: &str, mode: u32, uid: u64) -> Self {
        self.entry(b'5', name, "", b"", &Attributes { mode, uid, ..PLAIN })
    }

    pub(crate) fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(b'2', name, to, b"", &PLAIN)
    }

    pub(crate) fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(b'1', name, to, b"", &PLAIN)
    }
}
