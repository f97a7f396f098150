//! Numbers in few columns, which do not move.

/// A number of bytes in at most five columns: three digits and a unit, as in `9.87M` and `123K`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let units = ["K", "M", "G", "T", "P", "E"];
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1000 K need four digits, and are 0.98 M.
    while size >= 999.5 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{}{}", three_digits(size), units[unit])
}

/// A number of things in at most five columns, in thousands.
pub fn count(count: f64) -> String {
    if count < 999.5 {
        return match count {
            0.0 => "0".into(),
            count if count < 9.95 => format!("{count:.1}"),
            count => format!("{count:.0}"),
        };
    }
    let units = ["k", "M", "G", "T", "P", "E"];
    let mut count = count / 1000.0;
    let mut unit = 0;
    while count >= 999.5 && unit + 1 < units.len() {
        count /= 1000.0;
        unit += 1;
    }
    format!("{}{}", three_digits(count), units[unit])
}

fn three_digits(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// A part of a whole in per cent, in four columns: `0%` only where there is nothing.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return if part == 0 { "0%".into() } else { "∞".into() };
    }
    let percent = part as f64 * 100.0 / whole as f64;
    match percent {
        percent if part > 0 && percent < 0.5 => "<1%".into(),
        percent if percent >= 999.5 => ">999".into(),
        percent => format!("{percent:.0}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_five_columns() {
        for (value, expected) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "0.98K"),
            (1024, "1.00K"),
            (10_235, "10.0K"),
            (1 << 20, "1.00M"),
            ((1 << 20) - 1, "1.00M"),
            (999 << 10, "999K"),
            (1000 << 10, "0.98M"),
            (12_345_678, "11.8M"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        for shift in 0..64 {
            for around in 0..2000 {
                let value = (1_u64 << shift)
                    .wrapping_add(((1_u64 << shift) / 512 + 1).wrapping_mul(around));
                assert!(bytes(value).len() <= 5, "{value}: {}", bytes(value));
                assert!(count(value as f64).len() <= 5, "{value}: {}", count(value as f64));
            }
        }
    }

    #[test]
    fn parts_and_counts() {
        for (part, whole, expected) in [
            (0, 0, "0%"),
            (1, 0, "∞"),
            (1, 1000, "<1%"),
            (0, 9, "0%"),
            (1, 2, "50%"),
            (64, 64, "100%"),
        ] {
            assert_eq!(percent(part, whole), expected);
        }
        assert_eq!(percent(u64::MAX, 1), ">999");
        for (value, expected) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (9.96, "10"),
            (999.0, "999"),
            (1234.0, "1.23k"),
            (2e6, "2.00M"),
        ] {
            assert_eq!(count(value), expected);
        }
    }
}
