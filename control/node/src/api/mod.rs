//! The HTTP API: its routes. Its requests and answers are types of `archipelago_api`.
//!
//! JSON over HTTP/1.1 on a UNIX socket that only its owner may open. Every failure has the body
//! `{"error": {"code", "message", "hint"}}`. The description for machines is made from the types by
//! `archipelago_api::openapi`, served at `/v1/openapi.json` and compared with the routes by a test.

mod routes;

pub(crate) use routes::router;
