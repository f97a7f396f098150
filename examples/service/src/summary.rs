//! Work on a body: JSON is parsed into a tree, and the answer tells what is in it.
//!
//! The tree is the point: it is many times as large as the text, and lives for the time of a request. Each
//! vector of it asks the [`Room`] first, so that a parse ends where the tenant's limit is.

use std::cell::RefCell;
use std::fmt;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::room::{NoRoom, Room};

/// What is in a document.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub bytes: usize,
    pub depth: usize,
    pub objects: usize,
    pub keys: usize,
    pub arrays: usize,
    pub numbers: usize,
    pub sum: f64,
    pub strings: usize,
    pub longest_string: usize,
    pub booleans: usize,
    pub nulls: usize,
}

/// Why there is no summary.
#[derive(Debug)]
pub enum SummaryError {
    NoRoom(NoRoom),
    Malformed(serde_json::Error),
}

/// Parses JSON, and counts what is in it.
pub fn summary(text: &[u8], room: &Room) -> Result<Summary, SummaryError> {
    let refused = RefCell::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let seed = Seed { room, refused: &refused };
    let tree = seed.deserialize(&mut deserializer).and_then(|tree| {
        deserializer.end()?;
        Ok(tree)
    });
    let tree = tree.map_err(|error| match refused.take() {
        Some(no_room) => SummaryError::NoRoom(no_room),
        None => SummaryError::Malformed(error),
    })?;
    let mut summary = Summary { bytes: text.len(), ..Summary::default() };
    summary.add(&tree, 1);
    Ok(summary)
}

impl Summary {
    fn add(&mut self, json: &Json, depth: usize) {
        self.depth = self.depth.max(depth);
        match json {
            Json::Null => self.nulls += 1,
            Json::Bool => self.booleans += 1,
            Json::Number(number) => {
                self.numbers += 1;
                self.sum += number;
            }
            Json::String(text) => {
                self.strings += 1;
                self.longest_string = self.longest_string.max(text.len());
            }
            Json::Array(items) => {
                self.arrays += 1;
                items.iter().for_each(|item| self.add(item, depth + 1));
            }
            Json::Object(entries) => {
                self.objects += 1;
                self.keys += entries.len();
                entries.iter().for_each(|(_key, value)| self.add(value, depth + 1));
            }
        }
    }
}

enum Json {
    Null,
    Bool,
    Number(f64),
    String(Vec<u8>),
    Array(Vec<Json>),
    Object(Vec<(Vec<u8>, Json)>),
}

/// Parses a value into memory of a room.
#[derive(Clone, Copy)]
struct Seed<'a> {
    room: &'a Room,
    /// Set when a parse failed because there was no room.
    refused: &'a RefCell<Option<NoRoom>>,
}

impl Seed<'_> {
    fn push<T, E: Error>(self, to: &mut Vec<T>, item: T) -> Result<(), E> {
        if to.len() == to.capacity() {
            self.reserve(to, 1)?;
        }
        to.push(item);
        Ok(())
    }

    fn text<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        let mut copy = Vec::new();
        self.reserve(&mut copy, text.len())?;
        copy.extend_from_slice(text.as_bytes());
        Ok(copy)
    }

    fn reserve<T, E: Error>(self, vec: &mut Vec<T>, more: usize) -> Result<(), E> {
        self.room.reserve(vec, more).map_err(|no_room| {
            self.refused.replace(Some(no_room));
            E::custom("no room")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A key of an object.
struct Key<'a>(Seed<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        self.0.text(text)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Bool)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        self.text(text).map(Json::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            self.push(&mut items, item)?;
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(Key(self))? {
            let value = map.next_value_seed(self)?;
            self.push(&mut entries, (key, value))?;
        }
        Ok(Json::Object(entries))
    }
}
