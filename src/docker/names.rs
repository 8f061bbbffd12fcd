//! Names of volumes as names of images, and back.
//!
//! Docker lets a driver's volumes have any name; RBD's commands take `/` and `@` for separators. What an image's name
//! should not hold is written as `%` and two digits, as in a URL, so that every name leads back to one volume.

use std::fmt::Write as _;

use crate::error::{Error, Kind, Result};

/// The longest name that is taken, in bytes as an image's name: object names end at 2048, file names at 255.
const MAX: usize = 200;

/// The image's name for a volume's.
///
/// # Errors
/// [`Kind::Invalid`] if it is empty or too long.
pub(crate) fn image_name(volume: &str) -> Result<String> {
    let mut name = String::with_capacity(volume.len());
    for (at, c) in volume.char_indices() {
        let hidden = at == 0 && c == '.';
        if c.is_control() || matches!(c, '%' | '/' | '@' | ' ') || hidden {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                let _ = write!(name, "%{byte:02X}");
            }
        } else {
            name.push(c);
        }
    }
    match name.len() {
        0 => Err(Error::new(Kind::Invalid, "a volume needs a name")),
        1..=MAX => Ok(name),
        long => {
            let what = format!("the volume's name is too long: {long} bytes as an image's name");
            Err(Error::new(Kind::Invalid, what).with_hint(format!("at most {MAX}")))
        }
    }
}

/// The volume's name for an image's; `None` if no volume's name leads there.
pub(crate) fn volume_name(image: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(image.len());
    let mut rest = image.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let name = String::from_utf8(bytes).ok()?;
    (image_name(&name).ok()? == image).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_stay_and_others_are_escaped() {
        for (volume, image) in [
            ("pg-data", "pg-data"),
            ("os-day.3", "os-day.3"),
            ("größe", "größe"),
            ("rbd/pg@1", "rbd%2Fpg%401"),
            ("100%", "100%25"),
            ("../etc", "%2E.%2Fetc"),
            (" a\n", "%20a%0A"),
        ] {
            assert_eq!(image_name(volume).unwrap(), image);
            assert_eq!(volume_name(image).as_deref(), Some(volume));
        }
        assert_eq!(image_name("").unwrap_err().errno(), 22);
        assert_eq!(image_name(&"x".repeat(201)).unwrap_err().errno(), 22);
        for never in ["a/b", "%", "%4", "%zz", "%41", "%2f", "", ".a"] {
            assert_eq!(volume_name(never), None, "{never}");
        }
    }

    proptest! {
        #[test]
        fn every_name_leads_back(name in "\\PC{1,40}|[ -~]{1,60}") {
            let image = image_name(&name)?;
            prop_assert!(!image.contains(['/', '@']) && !image.starts_with('.'));
            prop_assert_eq!(volume_name(&image), Some(name));
        }
    }
}
