//! Schemas of the types whose JSON is a plain string or number, for the description of the HTTP API.

use std::borrow::Cow;

use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::endpoint::AttachmentId;
use crate::ids::{Lineage, Name, ObjectSize};
use crate::labels::{LABEL_VALUE_LEN_MAX, LABELS_MAX, LabelChanges, Labels};
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

/// An object from keys of labels to values of `value`'s type.
fn labels(description: &str, value: impl Into<SchemaType>) -> RefOr<Schema> {
    let value = ObjectBuilder::new()
        .schema_type(value)
        .max_length(Some(LABEL_VALUE_LEN_MAX));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(description))
        .property_names(Some(text("Key of a label", "^[a-z0-9][a-z0-9._-]{0,62}$")))
        .additional_properties(Some(AdditionalProperties::RefOr(value.into())))
        .max_properties(Some(LABELS_MAX))
        .into()
}

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        let description = "From keys to values: up to 32 labels, their keys and values of 3072 bytes together, without control characters";
        labels(description, Type::String)
    }
}

impl PartialSchema for LabelChanges {
    fn schema() -> RefOr<Schema> {
        let description =
            "From keys to values, or to null, which removes the label; what is not named stays";
        labels(
            description,
            SchemaType::from_iter([Type::String, Type::Null]),
        )
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

impl ToSchema for Labels {
    fn name() -> Cow<'static, str> {
        "Labels".into()
    }
}

impl ToSchema for LabelChanges {
    fn name() -> Cow<'static, str> {
        "LabelChanges".into()
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
