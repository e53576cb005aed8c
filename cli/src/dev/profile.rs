//! The `--machine-profile` text: what a development machine claims to have.

use berth_api::cluster::{Gpu, MachineProfile, PROFILE_MEMORY_MIN};
use berth_api::units::{Bytes, Cpu};

/// The profile when none is given. A development machine may claim more than the host has: nothing reserves it.
pub(crate) const DEFAULT_PROFILE: &str = "cpu=4,memory=8Gi,ephemeral=100Gi";

/// Reads `cpu=8,memory=16Gi,ephemeral=1Ti[,gpu=nvidia-t4:2]`; what is absent is as in [`DEFAULT_PROFILE`].
///
/// # Errors
/// Every fault of the text, one a line.
pub(crate) fn parse_profile(text: &str) -> Result<MachineProfile, String> {
    let mut profile = MachineProfile {
        cpu: Cpu::from_micros(4_000_000),
        memory_bytes: Bytes::gib(8),
        ephemeral_storage_bytes: Bytes::gib(100),
        gpu: None,
    };
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if seen.contains(&key) {
            faults.push(format!("{key} is given twice"));
        }
        seen.push(key);
        if let Err(fault) = set(&mut profile, key, value) {
            faults.push(fault);
        }
    }
    if faults.is_empty() {
        Ok(profile)
    } else {
        Err(faults.join("\n"))
    }
}

fn set(profile: &mut MachineProfile, key: &str, value: &str) -> Result<(), String> {
    let bytes = |value| Bytes::parse(value).map_err(|error| format!("{key}: {error}"));
    match key {
        "cpu" => {
            profile.cpu = Cpu::parse(value).map_err(|error| format!("cpu: {error}"))?;
            if profile.cpu == Cpu::ZERO {
                return Err("cpu: must be above 0".into());
            }
        }
        "memory" => {
            profile.memory_bytes = bytes(value)?;
            if profile.memory_bytes < PROFILE_MEMORY_MIN {
                return Err(format!("memory: must be at least {PROFILE_MEMORY_MIN}"));
            }
        }
        "ephemeral" => {
            profile.ephemeral_storage_bytes = bytes(value)?;
            if profile.ephemeral_storage_bytes == Bytes::ZERO {
                return Err("ephemeral: must be above 0".into());
            }
        }
        "gpu" => profile.gpu = Some(parse_gpu(value)?),
        _ => {
            return Err(format!(
                "{key:?} is no part of a profile; write cpu, memory, ephemeral or gpu"
            ));
        }
    }
    Ok(())
}

fn parse_gpu(text: &str) -> Result<Gpu, String> {
    let (kind, count) = text.split_once(':').unwrap_or((text, "1"));
    let count = count
        .parse()
        .ok()
        .filter(|count| (1..=8).contains(count))
        .ok_or_else(|| format!("gpu: {count:?} is not a number from 1 to 8"))?;
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if kind.is_empty() || !kind.bytes().all(valid) {
        return Err(format!(
            "gpu: {kind:?} is no type; write it in a-z, 0-9 and '-', for example nvidia-t4:2"
        ));
    }
    Ok(Gpu {
        kind: kind.into(),
        count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_part() {
        let profile = parse_profile("cpu=8,memory=16Gi,ephemeral=1Ti,gpu=nvidia-t4:2").unwrap();
        assert_eq!(profile.cpu, Cpu::from_micros(8_000_000));
        assert_eq!(profile.memory_bytes, Bytes::gib(16));
        assert_eq!(profile.ephemeral_storage_bytes, Bytes::gib(1024));
        assert_eq!(
            profile.gpu,
            Some(Gpu {
                kind: "nvidia-t4".into(),
                count: 2
            })
        );
    }

    #[test]
    fn the_default_text_says_what_the_defaults_are() {
        assert_eq!(
            parse_profile(DEFAULT_PROFILE).unwrap(),
            parse_profile("cpu=4").unwrap()
        );
    }

    #[test]
    fn lists_every_fault() {
        let faults = parse_profile("cpu=500m,memory=16,disk=1Gi,gpu=T4:9,cpu=1").unwrap_err();
        assert_eq!(faults.lines().count(), 5, "{faults}");
        assert!(
            faults.contains("cpu: \"500m\" is not vCPU; write 0.5"),
            "{faults}"
        );
    }
}
