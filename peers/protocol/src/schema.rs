//! Schemas of the types whose JSON is a plain string or number, for the description of the HTTP API.

use std::borrow::Cow;

use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::endpoint::AttachmentId;
use crate::ids::{Lineage, Name, ObjectSize};
use crate::on_full::OnFull;

fn text(description: &str, pattern: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .pattern(Some(pattern))
        .into()
}

fn number(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some(description))
        .into()
}

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        let description = "1 to 255 characters, not starting with a dot or dash";
        text(description, "^[A-Za-z0-9_@:+][A-Za-z0-9._@:+-]{0,254}$")
    }
}

impl PartialSchema for Lineage {
    fn schema() -> RefOr<Schema> {
        text(
            "Id of a map of blocks, in 32 hexadecimal digits",
            "^[0-9a-f]{32}$",
        )
    }
}

impl PartialSchema for OnFull {
    fn schema() -> RefOr<Schema> {
        let description = "What writes do for which the pool has no room: wait for ever, wait for so many seconds, or fail at once";
        text(description, "^(report|wait(:[0-9]+)?)$")
    }
}

impl PartialSchema for ObjectSize {
    fn schema() -> RefOr<Schema> {
        number("Bytes: a power of two from 64 KiB to 32 MiB")
    }
}

impl PartialSchema for AttachmentId {
    fn schema() -> RefOr<Schema> {
        number("Number of an attachment in its node")
    }
}

impl ToSchema for Name {
    fn name() -> Cow<'static, str> {
        "Name".into()
    }
}

impl ToSchema for Lineage {
    fn name() -> Cow<'static, str> {
        "Lineage".into()
    }
}

impl ToSchema for OnFull {
    fn name() -> Cow<'static, str> {
        "OnFull".into()
    }
}

impl ToSchema for ObjectSize {
    fn name() -> Cow<'static, str> {
        "ObjectSize".into()
    }
}

impl ToSchema for AttachmentId {
    fn name() -> Cow<'static, str> {
        "AttachmentId".into()
    }
}
