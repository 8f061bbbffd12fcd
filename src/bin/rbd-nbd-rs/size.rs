//! Sizes, read and printed as `rbd` does.

use std::fmt;

/// Reads a number of bytes: `4096`, `4K`, `1Gi`, `512B`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    parse(text, 0)
}

/// Reads the size of a block, in bytes.
pub(crate) fn block(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("must be greater than zero".to_owned()),
        size => Ok(size),
    }
}

/// Reads the size of an image: as [`bytes()`], but a number alone means MiB.
pub(crate) fn image(text: &str) -> Result<u64, String> {
    parse(text, 20)
}

/// Reads the size of an object, in bytes; the result is the nearest power of two, as such.
pub(crate) fn object(text: &str) -> Result<u8, String> {
    Ok((block(text)? as f64).log2().round() as u8)
}

/// `bits`: what a number without a unit counts in, as a power of two.
fn parse(text: &str, bits: u32) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let shift = match unit {
        "" => bits,
        "B" => 0,
        "K" | "Ki" => 10,
        "M" | "Mi" => 20,
        "G" | "Gi" => 30,
        "T" | "Ti" => 40,
        "P" | "Pi" => 50,
        "E" | "Ei" => 60,
        _ => return Err(format!("{unit:?} is no unit: use B, K, M, G, T, P or E")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number, such as 10G".to_owned())?;
    // `rbd` reads a signed number, and makes an unsigned one of it.
    Some(number)
        .filter(|number| *number <= i64::MAX as u64)
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text} is too large"))
}

/// Prints a number of bytes in the largest unit that it reaches, in at most seven characters (Ceph's `byte_u_t`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

        let power = (self.0.max(1).ilog2() / 10) as usize;
        let unit = UNITS.get(power).copied().unwrap_or("EiB");
        let factor = 1u64 << (10 * power);
        let text = if self.0.is_multiple_of(factor) {
            format!("{} {unit}", self.0 / factor)
        } else {
            let value = self.0 as f64 / factor as f64;
            let fits = |digits: &usize| format!("{value:.digits$} {unit}").len() <= 7;
            let digits = [2, 1, 0].into_iter().find(fits).unwrap_or(0);
            format!("{value:.digits$} {unit}")
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_as_rbd_reads_them() {
        assert_eq!(image("10"), Ok(10 << 20));
        assert_eq!(image("10G"), Ok(10 << 30));
        assert_eq!(image("1Ti"), Ok(1 << 40));
        assert_eq!(image("1024B"), Ok(1024));
        assert_eq!(image("5E"), Ok(5 << 60));
        assert_eq!(image("17592186044384M"), Ok(u64::MAX >> 25 << 25));
        assert_eq!(image("0"), Ok(0));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("4K"), Ok(4096));
        assert_eq!(block("4K"), Ok(4096));
        assert!(block("0").is_err());
        for wrong in [
            "",
            "x",
            "10Q",
            "-1",
            "1.5G",
            "16E",
            "16777216T",
            "9223372036854775808B",
            "1GB",
            "1 G",
            "K",
        ] {
            assert!(image(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn object_sizes_are_rounded_to_powers_of_two() {
        let orders: Vec<_> =
            ["4096", "8191", "3M", "4M", "5M", "6M", "7M", "33554432B", "2K", "64M"]
                .map(|size| object(size).unwrap())
                .into();
        assert_eq!(orders, [12, 13, 22, 22, 22, 23, 23, 25, 11, 26]);
        assert!(object("0").is_err());
    }

    #[test]
    fn printed_as_rbd_prints_them() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (10 << 20, "10 MiB"),
            ((1 << 30) + 1, "1.0 GiB"),
            (1536, "1.5 KiB"),
            (100 << 30, "100 GiB"),
            ((100 << 30) + (1 << 29), "100 GiB"),
            (5 << 60, "5 EiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes(size).to_string(), text);
        }
    }
}
