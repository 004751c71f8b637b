//! JSON Schemas of what does not derive its own; those of the messages are derived where the messages are. They are for the
//! server's OpenAPI document, and no part of any program.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::name::{ClaimId, Name};

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The name of a lock: 1 to 1,024 bytes of UTF-8. All characters are letters like any other.",
            "type": "string",
            "minLength": 1,
            "maxLength": Self::MAX_BYTES,
        })
    }
}

impl JsonSchema for ClaimId {
    fn schema_name() -> Cow<'static, str> {
        "Id".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "128 bits of secure randomness, made by the client. Who has it has the claim: it is a secret.",
            "type": "string",
            "pattern": "^[0-9A-Fa-f]{32}$",
        })
    }
}
