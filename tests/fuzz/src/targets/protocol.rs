//! What peers say to each other: ring entries, and JSON between the daemon and its processes. And the configuration.

use archipelago_api::config::{Config, PoolConfig};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::control::{ControlReply, ControlRequest};
use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
use archipelago_protocol::ids::{BLOCK_SIZE, SECTOR_SIZE};
use archipelago_protocol::map::{MapReply, MapRequest};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::status::{StatusPage, StatusRun};
use archipelago_protocol::{ErrorCode, Generation, Lineage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xseg::{Completion, Submission};

use crate::input::Input;

fn submission(bytes: &[u8]) -> Submission {
    let mut input = Input::new(bytes);
    let words = std::array::from_fn(|_| input.u64());
    let entry = Submission::from_words(words);
    assert_eq!(entry.to_words(), words);
    entry
}

fn completion(bytes: &[u8]) -> Completion {
    let mut input = Input::new(bytes);
    let words = std::array::from_fn(|_| input.u64());
    let entry = Completion::from_words(words);
    assert_eq!(entry.to_words(), words);
    entry
}

pub(crate) fn map_entry(bytes: &[u8]) {
    if let Ok(request) = MapRequest::decode(&submission(bytes)) {
        assert_eq!(MapRequest::decode(&request.encode()), Ok(request));
    }
    let entry = completion(bytes);
    let reply = MapReply::decode(&entry);
    let again = MapReply::decode(&reply.encode(entry.tag));
    assert_eq!((again, again.placement()), (reply, reply.placement()));
    assert_eq!(again.object_size(), reply.object_size());
    if let Ok(runs) = reply.status_runs() {
        let answer = MapReply::status(&runs);
        assert_eq!((answer.result, answer.values), (reply.result, reply.values));
        assert!(runs.iter().all(|run| run.len >= BLOCK_SIZE));
    }
}

/// The length that was asked for, then the page.
pub(crate) fn status_page(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let asked = input.u64();
    let page = input.take(usize::MAX);
    let Ok(decoded) = StatusPage::decode(page, asked) else {
        return;
    };
    let runs: Vec<StatusRun> = decoded.runs().collect();
    let covered: u64 = runs.iter().map(|run| run.len).sum();
    assert_eq!(decoded.covered(), covered);
    assert!((SECTOR_SIZE..=asked).contains(&covered));
    let again: Vec<u8> = runs.iter().flat_map(|run| run.encode()).collect();
    assert_eq!(again, page[..again.len()]);
}

pub(crate) fn object_entry(bytes: &[u8]) {
    let entry = submission(bytes);
    if let Some(Ok(request)) = HandleRequest::decode(&entry) {
        let again = HandleRequest::decode(&request.encode());
        assert_eq!(again, Some(Ok(request)));
    }
    let log = ObjectRequest {
        token: Generation(7),
        ..ObjectRequest::new(ObjectOp::Append, ObjectId::log(Lineage(3), 5))
    };
    let object = OpenObject::of(&log, HandleAccess::Metadata);
    let decode = |entry| ObjectRequest::decode(entry, |_, _| Ok(&object));
    if let Ok(request) = decode(&entry) {
        assert_eq!(decode(&request.encode(entry.handle)), Ok(request));
    }
    let entry = completion(bytes);
    let reply = ObjectReply::decode(&entry);
    assert_eq!(ObjectReply::decode(&reply.encode(entry.tag)), reply);
    let listed = Input::new(bytes).array();
    if let Some(id) = ObjectId::from_bytes(&listed) {
        assert_eq!(id.to_bytes(), listed);
    }
}

fn json<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&value).expect("string keys");
        let again: T = serde_json::from_slice(&text).expect("text of ours");
        assert_eq!(again, value);
    }
}

pub(crate) fn control_json(bytes: &[u8]) {
    json::<CatalogueRequest>(bytes);
    json::<CatalogueReply>(bytes);
    json::<ControlRequest>(bytes);
    json::<ControlReply>(bytes);
}

pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text) {
        Ok(config) => {
            assert!(config.data.channel_requests.is_power_of_two());
            let is_absolute =
                |pool: &PoolConfig| pool.directory().is_none_or(std::path::Path::is_absolute);
            assert!(!config.pools.is_empty() && config.pools.values().all(is_absolute));
        }
        Err(error) => assert!(
            error.code == ErrorCode::Invalid && !error.message.is_empty(),
            "{error:?}"
        ),
    }
}
