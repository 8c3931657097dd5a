//! The HTTP API: what it carries ([`types`], [`pools`]) and its routes.
//!
//! JSON over HTTP/1.1 on a UNIX socket that only its owner may open. Every failure has the body
//! `{"error": {"code", "message", "hint"}}`. The description for machines is `openapi.json`, served at
//! `/v1/openapi.json` and compared with the routes by a test.

pub mod pools;
mod routes;
pub mod types;

pub(crate) use routes::router;
