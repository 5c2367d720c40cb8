//! Reads one map as two structs: what speaks HTTP, and how it speaks it.
//!
//! *In*: a deserializer of a map. *Out*: the struct and its [`HttpClientConfig`]. *Bound*: the map. *When full*: does not apply.
//! `#[serde(flatten)]` would buffer the values and lose the path of what is wrong in them, and with it the line.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::HttpClientConfig;

/// Reads the keys of an [`HttpClientConfig`] into it, and lets `own` read all others.
///
/// *Shape*: for `own`, derive `Deserialize` with `#[serde(remote = "Self")]` and give its `deserialize`.
/// *Errors*: as `own` and the values have them; an unknown key is told with the words of both.
pub fn beside<'de, D, T>(deserializer: D, own: impl FnOnce(Beside<'_, D>) -> Result<T, D::Error>) -> Result<(T, HttpClientConfig), D::Error>
where
    D: Deserializer<'de>,
{
    let mut http = HttpClientConfig::default();
    let read = own(Beside { inner: deserializer, http: &mut http })?;
    Ok((read, http))
}

/// A deserializer that keeps some of a struct's keys to itself.
pub struct Beside<'a, D> {
    inner: D,
    http: &'a mut HttpClientConfig,
}

struct Split<'a, V> {
    visitor: V,
    own: &'static [&'static str],
    http: &'a mut HttpClientConfig,
}

struct Others<'a, A> {
    map: A,
    own: &'static [&'static str],
    http: &'a mut HttpClientConfig,
}

/// A key of one of the two.
struct Key {
    own: &'static [&'static str],
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Beside<'_, D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_struct(name, fields, Split { visitor, own: fields, http: self.http })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Split<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Others { map, own: self.own, http: self.http })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Others<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key_seed(Key { own: self.own })? {
            if !self.http.take(&key, &mut self.map)? {
                let key: StrDeserializer<'_, A::Error> = key.as_str().into_deserializer();
                return seed.deserialize(key).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let key = String::deserialize(deserializer)?;
        let known = || self.own.iter().chain(&HttpClientConfig::KEYS);
        if known().any(|known| *known == key) {
            return Ok(key);
        }
        let known: Vec<_> = known().map(|known| format!("`{known}`")).collect();
        Err(D::Error::custom(format!("unknown field `{key}`, expected one of {}", known.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, remote = "Self")]
    struct Own {
        url: String,
        #[serde(skip)]
        http: HttpClientConfig,
    }

    impl<'de> Deserialize<'de> for Own {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            beside(deserializer, |own| Self::deserialize(own)).map(|(own, http)| Self { http, ..own })
        }
    }

    fn read(json: &str) -> Result<Own, crate::OptionsError> {
        crate::options(&serde_json::from_str(json).expect("JSON"))
    }

    #[test]
    fn one_map_becomes_two_structs() {
        let own = read(r#"{"basic_auth": {"username": "a"}, "url": "x", "follow_redirects": false}"#).expect("known keys");
        assert_eq!(own.url, "x");
        assert_eq!(own.http.basic_auth.map(|basic| basic.username).as_deref(), Some("a"));
        assert!(!own.http.follow_redirects && own.http.enable_http2);
    }

    #[test]
    fn mistakes_keep_their_place() {
        for (json, path, message) in [
            (r#"{"url": "x", "tls_config": {"ca_fil": "y"}}"#, "tls_config.ca_fil", "unknown key 'ca_fil', did you mean 'ca_file'?"),
            (r#"{"url": "x", "tls_confi": {}}"#, "tls_confi", "unknown key 'tls_confi', did you mean 'tls_config'?"),
            (r#"{"urll": "x"}"#, "urll", "unknown key 'urll', did you mean 'url'?"),
            (r#"{"follow_redirects": false}"#, "", "'url' is missing"),
            (r#"{"url": "x", "follow_redirects": 3}"#, "follow_redirects", "expected true or false, found '3'"),
        ] {
            let error = read(json).expect_err(json);
            assert_eq!((error.path.as_str(), error.message.as_str()), (path, message), "{json}");
        }
    }

    #[test]
    fn every_field_is_a_key() {
        let schema = schemars::schema_for!(HttpClientConfig);
        let properties = schema.get("properties").and_then(|properties| properties.as_object()).expect("an object");
        let (mut fields, mut keys) = (properties.keys().map(String::as_str).collect::<Vec<_>>(), HttpClientConfig::KEYS.to_vec());
        fields.sort_unstable();
        keys.sort_unstable();
        assert_eq!(fields, keys);
    }
}
