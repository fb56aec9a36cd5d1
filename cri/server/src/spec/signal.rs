//! The signal that stops a container: the container's, else the image's, else SIGTERM.

use cri_api::v1;
use oci_spec::image::ImageConfiguration;

use super::SpecError;

const SIGTERM: i32 = 15;
/// glibc's first and last real-time signals, as programs in containers know them.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Names that don't follow from arithmetic, with their numbers on every architecture that we build for.
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];

/// The number of the signal that asks a container to stop.
pub fn stop_signal(container: &v1::ContainerConfig, image: &ImageConfiguration) -> Result<i32, SpecError> {
    let own = v1::Signal::try_from(container.stop_signal).map_err(|_| SpecError::StopSignal {
        signal: container.stop_signal.to_string(),
        place: "container's configuration",
    })?;
    if own != v1::Signal::RuntimeDefault {
        let name = own.as_str_name().trim_start_matches("SIGNAL_");
        return parse(name).ok_or_else(|| SpecError::StopSignal {
            signal: name.to_owned(),
            place: "container's configuration",
        });
    }
    let image = image
        .config()
        .as_ref()
        .and_then(|c| c.stop_signal().as_deref())
        .unwrap_or_default();
    if image.is_empty() {
        return Ok(SIGTERM);
    }
    parse(image).ok_or_else(|| SpecError::StopSignal {
        signal: image.to_owned(),
        place: "image's configuration",
    })
}

/// A number, or a name with or without `SIG`; real-time signals as `RTMIN+3` or as the CRI spells it `RTMINPLUS3`.
fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |rest: &str, sign: &str, word: &str| -> Option<i32> {
        let digits = rest.strip_prefix(sign).or_else(|| rest.strip_prefix(word))?;
        digits
            .parse::<i32>()
            .ok()
            .filter(|n| (0..=SIGRTMAX - SIGRTMIN).contains(n))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return if rest.is_empty() {
            Some(SIGRTMIN)
        } else {
            offset(rest, "+", "PLUS").map(|n| SIGRTMIN + n)
        };
    }
    let rest = name.strip_prefix("RTMAX")?;
    if rest.is_empty() {
        Some(SIGRTMAX)
    } else {
        offset(rest, "-", "MINUS").map(|n| SIGRTMAX - n)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;

    fn image(signal: Option<&str>) -> ImageConfiguration {
        let mut image = ImageConfiguration::default();
        if let Some(signal) = signal {
            image.set_config(Some(
                ConfigBuilder::default().stop_signal(signal).build().unwrap(),
            ));
        }
        image
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number() {
        let mut numbers = Vec::new();
        for value in 1..200 {
            if v1::Signal::try_from(value).is_err() {
                break;
            }
            let container = v1::ContainerConfig {
                stop_signal: value,
                ..Default::default()
            };
            numbers.push(stop_signal(&container, &image(None)).unwrap());
        }
        assert_eq!(numbers.len(), 65, "{numbers:?}");
        assert!(numbers.iter().all(|n| (1..=64).contains(n)));
    }

    #[test]
    fn the_container_wins_over_the_image_and_the_image_over_sigterm() {
        let unset = v1::ContainerConfig::default();
        let usr1 = v1::ContainerConfig {
            stop_signal: v1::Signal::Sigusr1 as i32,
            ..Default::default()
        };
        assert_eq!(stop_signal(&unset, &image(None)).unwrap(), 15);
        assert_eq!(stop_signal(&unset, &image(Some("SIGQUIT"))).unwrap(), 3);
        assert_eq!(stop_signal(&unset, &image(Some("37"))).unwrap(), 37);
        assert_eq!(stop_signal(&unset, &image(Some("rtmin+3"))).unwrap(), 37);
        assert_eq!(stop_signal(&unset, &image(Some("SIGRTMAX-1"))).unwrap(), 63);
        assert_eq!(stop_signal(&usr1, &image(Some("SIGQUIT"))).unwrap(), 10);
        for bad in ["SIGFOO", "0", "65", "RTMIN+31", "RTMIN3", "-1"] {
            let error = stop_signal(&unset, &image(Some(bad))).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("unknown stop signal `{bad}` in the image's configuration")
            );
        }
    }
}
