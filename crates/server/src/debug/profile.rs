//! What `pprof` reads: `profile.proto`, compressed. There are addresses and where code is mapped, and no names: the binary
//! has none. `pprof` finds them in one that was built the same way and not stripped.

use super::{Mapping, Sampled};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Mapped {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(uint64, tag = "4")]
    file_offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
}

/// `perftools.profiles.Profile`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapped>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The samples as `pprof` reads them.
#[must_use]
pub fn encode(sampled: &Sampled) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    let written = out.write_all(&profile(sampled).encode_to_vec()).and_then(|()| out.finish());
    written.expect("a vector takes all that is written to it")
}

fn profile(sampled: &Sampled) -> Profile {
    let mut strings: Vec<String> = ["", "samples", "count", "cpu", "nanoseconds"].map(str::to_owned).to_vec();
    let (samples, cpu) = (ValueType { kind: 1, unit: 2 }, ValueType { kind: 3, unit: 4 });
    let mapped = |(i, m): (usize, &Mapping)| {
        strings.push(m.file.clone());
        let filename = count(strings.len() as u64 - 1);
        let Mapping { start, end, offset, .. } = *m;
        Mapped { id: i as u64 + 1, memory_start: start, memory_limit: end, file_offset: offset, filename }
    };
    let mapping = sampled.mappings.iter().enumerate().map(mapped).collect();
    let (mut ids, mut location) = (HashMap::new(), Vec::new());
    let mut id_of = |address: u64| {
        *ids.entry(address).or_insert_with(|| {
            let holds = |m: &Mapping| (m.start..m.end).contains(&address);
            let mapping_id = sampled.mappings.iter().position(holds).map_or(0, |i| i as u64 + 1);
            let id = location.len() as u64 + 1;
            location.push(Location { id, mapping_id, address });
            id
        })
    };
    let mut stacks: Vec<_> = sampled.stacks.iter().collect();
    stacks.sort_unstable();
    let period = nanos(sampled.period);
    let sample = |(stack, n): (&Vec<u64>, &u64)| Sample {
        location_id: stack.iter().map(|address| id_of(*address)).collect(),
        value: vec![count(*n), count(*n).saturating_mul(period)],
    };
    let sample = stacks.into_iter().map(sample).collect();
    Profile {
        sample_type: vec![samples, cpu.clone()],
        sample,
        mapping,
        location,
        string_table: strings,
        time_nanos: nanos(sampled.began),
        duration_nanos: nanos(sampled.took),
        period_type: Some(cpu),
        period,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn samples_are_told_by_address_and_mapping() {
        let mapping = Mapping { start: 0x1000, end: 0x2000, offset: 0x400, file: "/gantry".to_owned() };
        let sampled = Sampled {
            stacks: [(vec![0x1010, 0x1500], 3), (vec![0x1010], 1), (vec![0x9000], 2)].into(),
            period: Duration::from_millis(10),
            took: Duration::from_secs(1),
            began: Duration::from_secs(100),
            mappings: vec![mapping],
        };
        let mut plain = Vec::new();
        GzDecoder::new(encode(&sampled).as_slice()).read_to_end(&mut plain).unwrap();
        let read = Profile::decode(plain.as_slice()).unwrap();
        let values: Vec<(Vec<u64>, i64, i64)> =
            read.sample.iter().map(|s| (s.location_id.clone(), s.value[0], s.value[1])).collect();
        assert_eq!(values, [(vec![1], 1, 10_000_000), (vec![1, 2], 3, 30_000_000), (vec![3], 2, 20_000_000)]);
        let places: Vec<(u64, u64)> = read.location.iter().map(|l| (l.address, l.mapping_id)).collect();
        assert_eq!(places, [(0x1010, 1), (0x1500, 1), (0x9000, 0)]);
        let mapping = &read.mapping[0];
        assert_eq!((mapping.memory_start, mapping.memory_limit, mapping.file_offset), (0x1000, 0x2000, 0x400));
        let named = |i: i64| read.string_table[usize::try_from(i).unwrap()].as_str();
        assert_eq!(named(mapping.filename), "/gantry");
        let cpu = read.period_type.as_ref().unwrap();
        assert_eq!((named(cpu.kind), named(cpu.unit), read.period), ("cpu", "nanoseconds", 10_000_000));
        assert_eq!((read.time_nanos, read.duration_nanos), (100_000_000_000, 1_000_000_000));
    }
}
