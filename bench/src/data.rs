//! The full-size real data that benches read when the folder is named in `GRISTMILL_DATA`.

use std::path::{Path, PathBuf};

/// Names the folder.
pub const DATA_VARIABLE: &str = "GRISTMILL_DATA";

/// The folder of real data; says on stderr, loudly, when there is none and what is then missing.
pub fn folder(what_is_missing: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(DATA_VARIABLE).map(PathBuf::from);
    match &folder {
        None => eprintln!("!!! {DATA_VARIABLE} is not set: {what_is_missing}"),
        Some(path) if !path.is_dir() => {
            eprintln!("!!! {DATA_VARIABLE}={} is no folder: {what_is_missing}", path.display());
            return None;
        }
        Some(_) => {}
    }
    folder
}

/// A two-dimensional array read from an `.npy` file, row by row.
#[derive(Debug)]
pub struct Matrix<T> {
    /// Components of each row.
    pub columns: usize,
    /// All rows, one after the other.
    pub values: Vec<T>,
}

impl<T> Matrix<T> {
    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[T]> {
        self.values.chunks_exact(self.columns)
    }
}

/// Reads float16 or float32, little-endian.
///
/// # Panics
/// When the file is missing or of another kind: a bench cannot go on without its data.
pub fn read_floats(path: &Path) -> Matrix<f32> {
    let file = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (kind, columns, data) = split_npy(&file).unwrap_or_else(|| panic!("{}: not a 2-d .npy file", path.display()));
    let values = match kind {
        "<f2" => data.as_chunks().0.iter().map(|&bytes| f32_from_f16(u16::from_le_bytes(bytes))).collect(),
        "<f4" => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        other => panic!("{}: {other} where float16 or float32 was expected", path.display()),
    };
    Matrix { columns, values }
}

/// Reads int32, little-endian.
///
/// # Panics
/// As [`read_floats`].
pub fn read_integers(path: &Path) -> Matrix<i32> {
    let file = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (kind, columns, data) = split_npy(&file).unwrap_or_else(|| panic!("{}: not a 2-d .npy file", path.display()));
    assert_eq!(kind, "<i4", "{}", path.display());
    Matrix { columns, values: data.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect() }
}

/// The element kind, the columns and the data of a version 1 `.npy` file in C order.
fn split_npy(file: &[u8]) -> Option<(&str, usize, &[u8])> {
    let rest = file.strip_prefix(b"\x93NUMPY\x01\x00")?;
    let (length, rest) = rest.split_first_chunk()?;
    let (header, data) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let header = std::str::from_utf8(header).ok()?;
    let kind = header.split_once("'descr': '")?.1.split_once('\'')?.0;
    let shape = header.split_once("'shape': (")?.1.split_once(')')?.0;
    let columns = shape.split(',').map(str::trim).nth(1)?.parse().ok()?;
    (header.contains("'fortran_order': False")).then_some((kind, columns, data))
}

/// IEEE 754 half to single, exact.
fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, mantissa) = (u32::from(bits >> 10 & 0x1F), u32::from(bits & 0x3FF));
    match exponent {
        // A subnormal is its mantissa times 2⁻²⁴.
        0 => f32::from_bits(sign | (mantissa as f32 / 16_777_216.0).to_bits()),
        0x1F => f32::from_bits(sign | 0x7F80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_the_same_singles() {
        let cases = [(0x0000, 0.0), (0x3C00, 1.0), (0xC000, -2.0), (0x3555, 0.333_251_95), (0x0001, 5.960_464_5e-8)];
        for (bits, expected) in cases {
            assert_eq!(f32_from_f16(bits).to_bits(), f32::to_bits(expected), "{bits:#06x}");
        }
        assert_eq!(f32_from_f16(0x8000).to_bits(), (-0.0_f32).to_bits());
        assert!(f32_from_f16(0x7C00).is_infinite() && f32_from_f16(0x7E00).is_nan());
    }

    #[test]
    fn a_file_is_its_header_and_its_data() {
        let header = "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }\n";
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend([7; 12]);
        assert_eq!(split_npy(&file), Some(("<f2", 3, [7; 12].as_slice())));
        assert_eq!(split_npy(&file[1..]), None);
        assert_eq!(split_npy(&file[..20]), None);
    }
}
