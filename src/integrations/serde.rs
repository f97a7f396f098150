//! What is not derived: limits and histograms. See [the guide](crate::guide#metrics).

use serde::de::Error;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::memcg::Limit;
use crate::percpu::{HistogramSnapshot, HistogramValue};

/// A number of bytes, and null for no limit.
impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Option::<u64>::deserialize(deserializer)?;
        Ok(bytes.map_or(Limit::MAX, Limit::bytes))
    }
}

/// Durations are numbers of nanoseconds.
impl<const B: usize, V: HistogramValue> Serialize for HistogramSnapshot<B, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("HistogramSnapshot", 4)?;
        fields.serialize_field("bounds", &self.bounds.map(V::to_units)[..])?;
        fields.serialize_field("counts", &self.counts[..])?;
        fields.serialize_field("over", &self.over)?;
        fields.serialize_field("sum", &self.sum.to_units())?;
        fields.end()
    }
}

impl<'de, const B: usize, V: HistogramValue> Deserialize<'de> for HistogramSnapshot<B, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "HistogramSnapshot")]
        struct Fields {
            bounds: Vec<u64>,
            counts: Vec<u64>,
            over: u64,
            sum: u64,
        }
        let Fields { bounds, counts, over, sum } = Fields::deserialize(deserializer)?;
        let all = |list: Vec<u64>| -> Result<[u64; B], D::Error> {
            let expected = format!("{B} buckets");
            list.try_into().map_err(|list: Vec<_>| Error::invalid_length(list.len(), &&*expected))
        };
        let bounds = all(bounds)?.map(V::from_units);
        Ok(HistogramSnapshot { bounds, counts: all(counts)?, over, sum: V::from_units(sum) })
    }
}
