//! Where the data of files with holes goes: the four ways in which GNU tar says so.

use std::io::Read;

use super::fields::number;
use super::pax::{SparseFields, decimal};
use super::{Archive, BLOCK, Entry, MAX_REGIONS, TarError};

impl<R: Read> Archive<R> {
    /// The sparse map of GNU's old format: four regions in the header, more in blocks after it.
    pub(super) fn read_gnu_sparse(
        &mut self,
        header: &[u8; BLOCK],
        at: u64,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let bad = || TarError::Field {
            field: "sparse map",
            at,
        };
        let mut regions = Vec::new();
        let add = |bytes: &[u8], regions: &mut Vec<(u64, u64)>| -> Result<(), TarError> {
            for pair in bytes.chunks_exact(24) {
                if pair[0] != 0 && pair[12] != 0 {
                    let region = number(&pair[..12]).zip(number(&pair[12..])).ok_or_else(bad)?;
                    regions.push(region);
                }
            }
            if regions.len() > MAX_REGIONS {
                Err(bad())
            } else {
                Ok(())
            }
        };
        add(&header[386..482], &mut regions)?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            self.source.read_exact(&mut block)?;
            self.position += BLOCK as u64;
            add(&block[..504], &mut regions)?;
            more = block[504] != 0;
        }
        let real_size = number(&header[483..495]).ok_or_else(bad)?;
        self.set_regions(regions, real_size, at, entry)
    }

    /// The sparse map of PAX: versions 0.0 and 0.1 have it in the header, 1.0 at the beginning of the data.
    pub(super) fn read_pax_sparse(
        &mut self,
        mut sparse: SparseFields,
        at: u64,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let bad = || TarError::Field {
            field: "sparse map",
            at,
        };
        if sparse.is_v1 {
            let mut numbers = Vec::new();
            let mut wanted = 1;
            let mut text = Vec::new();
            // The map is decimal numbers, one a line, filled up to a whole block.
            while numbers.len() < wanted {
                let mut block = [0; BLOCK];
                let mut filled = 0;
                while filled < BLOCK {
                    match self.read_data(&mut block[filled..])? {
                        0 => return Err(bad()),
                        read => filled += read,
                    }
                }
                for byte in block {
                    if byte != b'\n' {
                        text.push(byte);
                        continue;
                    }
                    if numbers.len() == wanted {
                        break;
                    }
                    let number = decimal(&text).ok_or_else(bad)?;
                    text.clear();
                    if numbers.is_empty() {
                        let count = usize::try_from(number)
                            .ok()
                            .filter(|c| *c <= MAX_REGIONS)
                            .ok_or_else(bad)?;
                        wanted = 1 + 2 * count;
                    }
                    numbers.push(number);
                }
                if text.len() > 2 * BLOCK {
                    return Err(bad());
                }
            }
            sparse.regions = numbers[1..]
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect();
        }
        let real_size = sparse.real_size.ok_or_else(bad)?;
        self.set_regions(sparse.regions, real_size, at, entry)
    }

    /// Takes a map when it is in order, within the file, and as long as the data.
    fn set_regions(
        &mut self,
        regions: Vec<(u64, u64)>,
        size: u64,
        at: u64,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let bad = || TarError::Field {
            field: "sparse map",
            at,
        };
        let (mut end, mut total) = (0_u64, 0_u64);
        for (offset, length) in &regions {
            if *offset < end {
                return Err(bad());
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= size)
                .ok_or_else(bad)?;
            total += length;
        }
        if total != self.remaining {
            return Err(bad());
        }
        entry.size = size;
        entry.regions = Some(regions);
        Ok(())
    }
}
