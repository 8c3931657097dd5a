//! The description of the HTTP API for machines, OpenAPI 3.1: the operations of this table, with the schemas of the types.
//!
//! A new route needs a line in [`operations`]; a test of the daemon compares the two. The meaning of a field is documented only at the
//! field. A running daemon returns the description for `GET /v1/openapi.json`.

use std::collections::BTreeMap;

use archipelago_protocol::diff::{DiffPage, RANGES_MAX};
use archipelago_protocol::usage::Usage;
use serde_json::{Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::pools::{AddPool, PoolList, PoolView};
use crate::types::{
    AttachVolume, Attachment, BeginImport, Bulk, CloneVolume, CreateVolume, DetachVolume, Done,
    Failure, NodeStatus, OpenVolume, PoolCheck, RenameVolume, ResizeVolume, RollbackVolume,
    SetVolume, SnapshotVolume, Stopped, VolumePage, VolumeView,
};

/// The meaning of each status of a failure.
const FAILURE: &str = "400 invalid, 403 read-only or denied, 404 not-found, 409 exists, in-use or stale, 501 unsupported, 503 \
                       unavailable, 507 no-space, 500 otherwise";

/// A type of the API: its name, and how to get its schema with the schemas of the types in it.
#[derive(Debug, Clone, Copy)]
struct Body {
    name: fn() -> std::borrow::Cow<'static, str>,
    schema: fn() -> RefOr<Schema>,
    parts: fn(&mut Vec<(String, RefOr<Schema>)>),
}

fn body<T: ToSchema + PartialSchema>() -> Body {
    Body {
        name: T::name,
        schema: T::schema,
        parts: T::schemas,
    }
}

/// An operation of the API.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Path with its parameters in braces.
    pub path: &'static str,
    /// Method, in small letters.
    pub method: &'static str,
    /// Its name, for programs.
    id: &'static str,
    summary: &'static str,
    request: Option<Body>,
    /// Status and body of the answer after success.
    answer: (&'static str, Option<Body>),
}

fn get(path: &'static str, id: &'static str, answer: Body, summary: &'static str) -> Operation {
    Operation {
        path,
        method: "get",
        id,
        summary,
        request: None,
        answer: ("200", Some(answer)),
    }
}

/// An operation with the method POST, without a body.
fn post(path: &'static str, id: &'static str, answer: Body, summary: &'static str) -> Operation {
    Operation {
        method: "post",
        ..get(path, id, answer, summary)
    }
}

fn delete(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation {
        method: "delete",
        ..get(path, id, body::<Done>(), summary)
    }
}

impl Operation {
    fn of<Q: ToSchema>(self) -> Operation {
        Operation {
            request: Some(body::<Q>()),
            ..self
        }
    }

    /// Makes something.
    fn made(self) -> Operation {
        Operation {
            answer: ("201", self.answer.1),
            ..self
        }
    }
}

/// All operations of the API.
#[must_use]
pub fn operations() -> Vec<Operation> {
    let volume = body::<VolumeView>;
    vec![
        Operation {
            answer: ("200", None),
            ..get("/v1/openapi.json", "openapi", body::<Done>(), "This description")
        },
        get("/v1/node/status", "nodeStatus", body::<NodeStatus>(), "The processes of the node, their peers and channels, and what is attached"),
        post("/v1/node/stop", "nodeStop", body::<Stopped>(), "Stops cleanly: endpoint, mapper and blocker drain in this order; answered when they have ended, then the daemon exits"),
        get("/v1/pools", "poolList", body::<PoolList>(), "The pools"),
        post("/v1/pools", "poolAdd", body::<PoolView>(), "Adds a pool; answers when it is served").of::<AddPool>().made(),
        get("/v1/pools/{name}", "poolInfo", body::<PoolView>(), "One pool"),
        delete("/v1/pools/{name}", "poolRemove", "Takes a pool that holds nothing out of the node"),
        post("/v1/pools/{name}/take-over", "poolTakeOver", body::<PoolView>(), "Takes over a pool that is not served because another node, which does not write to it any more, has not released it; answers when it is served"),
        get("/v1/pools/{name}/check", "checkPool", body::<PoolCheck>(), "What is damaged, missing or leaked in a pool; changes nothing"),
        get("/v1/volumes", "volumeList", body::<VolumePage>(), "A page of volumes, snapshots and images, in order of their names"),
        post("/v1/volumes", "volumeCreate", volume(), "A new, empty volume").of::<CreateVolume>().made(),
        get("/v1/volumes/{name}", "volumeInfo", volume(), "One volume, snapshot or image"),
        get("/v1/volumes/{name}/usage", "volumeUsage", body::<Usage>(), "What it takes of its pool; a walk over its map and those of its snapshots. 409 in-use: its last session has not ended"),
        get("/v1/volumes/{name}/diff", "volumeDiff", body::<DiffPage>(), "A page of the ranges in which it differs from a snapshot or an image; a walk over what differs"),
        delete("/v1/volumes/{name}", "volumeRemove", "Forgets the name; what clones still need stays"),
        post("/v1/volumes/{name}/snapshot", "volumeSnapshot", volume(), "A snapshot, of a volume that may be running").of::<SnapshotVolume>().made(),
        post("/v1/volumes/{name}/clone", "volumeClone", volume(), "A writable volume that begins as the snapshot or image in the path").of::<CloneVolume>().made(),
        post("/v1/volumes/{name}/resize", "volumeResize", volume(), "Another size; a running guest is notified").of::<ResizeVolume>(),
        post("/v1/volumes/{name}/set", "volumeSet", volume(), "Other labels, or another policy for a full pool, which a running guest is served by at once").of::<SetVolume>(),
        post("/v1/volumes/{name}/rename", "volumeRename", volume(), "Another name").of::<RenameVolume>(),
        post("/v1/volumes/{name}/rollback", "volumeRollback", volume(), "The detached volume begins again as one of its snapshots").of::<RollbackVolume>(),
        post("/v1/volumes/{name}/attach", "volumeAttach", body::<Attachment>(), "Serves it at a socket (vhost-user, NBD), as a file (FUSE) or as a block device (ublk, loop) of the host; the same again answers the same. What is read-only may be attached several times").of::<AttachVolume>(),
        post("/v1/volumes/{name}/detach", "volumeDetach", body::<Done>(), "Serves it no longer, or of several attachments the one that is meant; refused while somebody is connected").of::<DetachVolume>(),
        post("/v1/volumes/{name}/export", "volumeExport", body::<Bulk>(), "Opens it for one reader over a segment channel"),
        post("/v1/volumes/{name}/open", "volumeOpen", body::<Bulk>(), "Opens it for one process over a segment channel, until that process closes it or ends").of::<OpenVolume>(),
        post("/v1/images", "imageImport", body::<Bulk>(), "Makes an image that is not visible yet and opens it for one writer over a segment channel").of::<BeginImport>().made(),
        delete("/v1/images/{name}", "imageAbort", "Forgets an import in progress"),
        post("/v1/images/{name}/publish", "imagePublish", volume(), "Makes a filled import visible"),
    ]
}

/// The description that the daemon serves.
///
/// # Panics
/// Never: schemas have string keys.
#[must_use]
pub fn document() -> Value {
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    let mut paths: BTreeMap<&str, Value> = BTreeMap::new();
    let mut content = |body: Body| {
        let mut parts = vec![((body.name)().into_owned(), (body.schema)())];
        (body.parts)(&mut parts);
        for (name, schema) in parts {
            let schema = serde_json::to_value(schema).expect("schemas have string keys");
            schemas.insert(name, schema);
        }
        let reference = format!("#/components/schemas/{}", (body.name)());
        json!({ "application/json": { "schema": { "$ref": reference } } })
    };
    for operation in operations() {
        let (status, answer) = operation.answer;
        let mut answered = json!({ "description": "done" });
        if let Some(answer) = answer {
            answered["content"] = content(answer);
        }
        let mut described = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "responses": { status: answered, "default": { "$ref": "#/components/responses/Failure" } },
        });
        if let Some(request) = operation.request {
            described["requestBody"] = json!({ "required": true, "content": content(request) });
        }
        match operation.id {
            "volumeList" => described["parameters"] = listing(),
            "volumeDiff" => described["parameters"] = differences(),
            "poolRemove" => described["parameters"] = removal(),
            "imageAbort" | "imagePublish" => described["parameters"] = import(),
            _ => {}
        }
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if operation.path.contains("{name}") {
            path["parameters"] = json!([{ "$ref": "#/components/parameters/name" }]);
        }
        path[operation.method] = described;
    }
    let failure = json!({ "description": FAILURE, "content": content(body::<Failure>()) });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Archipelago node",
            "version": "1",
            "description": "JSON over HTTP/1.1 on the node's UNIX socket run/api.sock. A path segment {name} is percent-encoded.",
        },
        "paths": paths,
        "components": {
            "parameters": {
                "name": { "name": "name", "in": "path", "required": true, "schema": { "$ref": "#/components/schemas/Name" } },
            },
            "responses": { "Failure": failure },
            "schemas": schemas,
        },
    })
}

/// Parameters of a listing.
fn listing() -> Value {
    json!([
        { "name": "prefix", "in": "query", "schema": { "type": "string" }, "description": "what the names begin with" },
        { "name": "after", "in": "query", "schema": { "$ref": "#/components/schemas/Name" }, "description": "only names after this one" },
        { "name": "label", "in": "query", "schema": { "type": "string" }, "description": "only what has this label: its key, or KEY=VALUE" },
        { "name": "limit", "in": "query", "schema": { "type": "integer", "minimum": 1, "maximum": 1000 } },
    ])
}

/// Parameters of a comparison.
fn differences() -> Value {
    json!([
        { "name": "from", "in": "query", "schema": { "$ref": "#/components/schemas/Name" }, "description": "a snapshot or an image; left out: zeros, so that everything counts that has data" },
        { "name": "start", "in": "query", "schema": { "type": "integer", "minimum": 0, "default": 0 }, "description": "only from this byte on: `next` of the page before" },
        { "name": "limit", "in": "query", "schema": { "type": "integer", "minimum": 1, "maximum": RANGES_MAX, "default": RANGES_MAX } },
    ])
}

/// Parameters of the removal of a pool.
fn removal() -> Value {
    json!([{
        "name": "unserved", "in": "query", "schema": { "type": "boolean", "default": false },
        "description": "true: take out a pool that is not served, whatever it holds; false: one that is served and holds nothing",
    }])
}

/// Parameters of what ends an import.
fn import() -> Value {
    json!([{
        "name": "lineage", "in": "query", "required": true, "schema": { "$ref": "#/components/schemas/Lineage" },
        "description": "which import of this name: the `lineage` that its beginning was answered with",
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_fields_are_described() {
        let description = document();
        let mut pending = vec![&description];
        let mut references = 0;
        while let Some(value) = pending.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        references += 1;
                        let pointer = reference
                            .strip_prefix('#')
                            .expect("references stay in the document");
                        assert!(description.pointer(pointer).is_some(), "{reference}");
                    }
                    pending.extend(map.values());
                }
                Value::Array(items) => pending.extend(items),
                _ => {}
            }
        }
        assert!(references > 60, "{references}");
        let size = &description["components"]["schemas"]["CreateVolume"]["properties"]["size"];
        assert_eq!(size["description"], "Bytes.");
    }

    #[test]
    fn what_is_said_of_a_type_is_what_its_json_is() {
        let description = document();
        let properties = |name: &str| -> Vec<String> {
            let schema = &description["components"]["schemas"][name]["properties"];
            schema.as_object().unwrap().keys().cloned().collect()
        };
        let status = NodeStatus {
            version: String::new(),
            pid: 0,
            descriptors: None,
            placement: crate::config::Placement::Fused,
            processes: Vec::new(),
            attachments: Vec::new(),
            waits: Vec::new(),
            pools: Vec::new(),
            journals: Vec::new(),
            problems: Vec::new(),
        };
        let fields = serde_json::to_value(status).unwrap();
        let fields: Vec<String> = fields.as_object().unwrap().keys().cloned().collect();
        assert_eq!(properties("NodeStatus"), fields);
        let strings = ["Name", "Lineage", "OnFull"];
        for name in ["Labels", "LabelChanges"] {
            assert_eq!(description["components"]["schemas"][name]["type"], "object");
        }
        for name in strings {
            assert_eq!(description["components"]["schemas"][name]["type"], "string");
        }
        assert_eq!(
            description["components"]["schemas"]["ObjectSize"]["type"],
            "integer"
        );
    }
}
